"""What the speed metrics are made of: operations counted from the architecture, bytes under way."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flow_trainer.doctor.estimate import forwards
from flow_trainer.loop.ratio import measure_ratio
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.run import note_revisions
from flow_trainer.models.families.flux import FAMILY as FLUX
from flow_trainer.models.flops import FlopsByText, forward_flops
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Work
from flow_trainer.recipe import Model, parse_recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.checkpoint import Progress
from flow_trainer.record.throughput import Traffic, peak_flops, peak_memory_gb, speed
from tiny_pipelines import MODELS, build

CPU = torch.device("cpu")


def test_flops_are_those_of_the_layers(tmp_path: Path) -> None:
    config = Model(family="flux", path=str(build("flux", tmp_path)), height=8, width=8)
    policy = load_policy(config, CPU, with_reference=False)
    transformer: Any = policy._tuning.transformer  # type: ignore[attr-defined]
    seen: list[int] = []

    def count(layer: nn.Linear, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append(2 * args[0].numel() * layer.out_features)

    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and "lora" not in name:
            layer.register_forward_hook(count)
    conditioning = policy.encode(["red"])
    with torch.no_grad():
        policy.velocity(torch.randn(1, *policy.latent_shape), torch.ones(1), conditioning)
    text = conditioning.tokens.shape[1]
    attention = 2 * 4 * (4 + text) ** 2 * 16  # blocks, tokens, width
    flops = forward_flops(
        type(transformer), transformer.config, FLUX, config, policy.latent_shape, text
    )
    assert flops == sum(seen) + attention
    work = policy.take_work()
    assert work == Work(tokens=4, flops=flops)
    assert policy.take_work() == Work(0, 0.0)
    of_length = partial(
        forward_flops,
        type(transformer),
        transformer.config,
        FLUX,
        config,
        policy.latent_shape,
    )
    learned = FlopsByText(of_length)
    assert [learned(n) for n in (3, 8, 5)] == [of_length(n) for n in (3, 8, 5)]
    assert learned(300) == pytest.approx(of_length(300), rel=1e-12)
    assert len(learned._known) == 3


def test_texts_are_counted_as_the_transformer_fills_them(tmp_path: Path) -> None:
    path = str(build("z_image", tmp_path))
    config = Model(family="z_image", path=path, height=8, width=8, max_sequence_length=192)
    policy: Any = load_policy(config, CPU, with_reference=False)
    transformer = policy._tuning.transformer
    of_length = partial(
        forward_flops,
        type(transformer),
        transformer.config,
        policy._family,
        config,
        policy.latent_shape,
    )
    assert of_length(40) == of_length(64) > of_length(32)
    policy._flops(40), policy._flops(41), policy._flops(63)
    assert policy._flops(150) == of_length(150)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_a_rollout_costs_what_the_estimate_says(
    recipe_data: dict[str, Any], guidance: float
) -> None:
    recipe_data["model"] |= MODELS["sd3"] | {"guidance": guidance}
    recipe = parse_recipe(recipe_data)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    measure_ratio(policy, recipe, [Prompt("red")])
    policy.take_work()
    prompts = [Prompt("red"), Prompt("blue")]
    rollout(policy, recipe, 0, prompts, [0, 1], lambda rows, images: None)
    assert policy.take_work().tokens == forwards(recipe).sampling * recipe.images_per_epoch * 4


def test_rates() -> None:
    work = Work(tokens=1000, flops=4e12)
    assert speed(work, images=10, seconds=2.0, peak=None) == {
        "images_per_second": 5.0,
        "tokens_per_second": 500.0,
        "model_tflops": 2.0,
    }
    assert speed(work, images=10, seconds=2.0, peak=1e13)["mfu"] == 0.2


def test_mfu_needs_a_known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert peak_flops(CPU, "bfloat16") is None
    for name, expected in (("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 MIG 1g.10gb", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(gpu, "bfloat16") == expected
    assert peak_flops(gpu, "float32") is None


def test_memory_of_this_process() -> None:
    assert 0.05 < peak_memory_gb(CPU) < 64


def test_bytes_under_way() -> None:
    traffic, first, second = Traffic(), Future[None](), Future[None]()
    traffic.track(first, 100)
    traffic.track(second, 50)
    first.set_result(None)
    assert traffic.take() == {"reward_bytes": 150, "reward_bytes_in_flight": 150}
    second.set_exception(RuntimeError())
    traffic.track(Future(), 20)
    assert traffic.take() == {"reward_bytes": 20, "reward_bytes_in_flight": 50}


def test_a_reward_that_changes_in_mid_run_is_reported_once() -> None:
    said: list[str] = []
    run: Any = SimpleNamespace(
        progress=Progress(epoch=7, revisions={"ocr": "a", "aesthetic": "x"}),
        log=SimpleNamespace(say=said.append),
    )
    for revision in ("a", "a+b", "b", "b"):
        note_revisions(run, {"ocr": revision})
    assert len(said) == 2
    assert "ocr changed from revision a to a+b after epoch 7" in said[0]
    assert run.progress.revisions == {"ocr": "b", "aesthetic": "x"}
