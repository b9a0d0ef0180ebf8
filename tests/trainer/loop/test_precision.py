"""What float16 leaves of the published recipes' gradients, at their latents and divisors; the network
itself is narrow. On a CPU, whose autocast computes norms in float16, a GPU's in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.doctor.precision import check_precision
from flow_trainer.loop.precision import Precision, measure_precision
from flow_trainer.loop.updates.loss_scale import LossScale, make_loss_scale
from flow_trainer.models.load import load_policy
from flow_trainer.recipe import Recipe, load_recipe, parse_recipe
from flow_trainer.recipe.prompts import Prompt
from policy_steps import CPU
from tiny_pipelines import build

RECIPES = Path(__file__).parents[3] / "trainer" / "recipes"
PROMPT = Prompt("red sign")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sd3_published_latents", tmp_path_factory.mktemp("published"))


def published_recipe(folder: Path, name: str, *options: str) -> Recipe:
    return load_recipe(
        RECIPES / f"{name}.toml",
        [
            f"model.path={folder}",
            "model.height=128",
            "model.width=128",
            "model.max_sequence_length=0",
            "model.autocast_on_cpu=true",
            "model.lora_rank=4",
            *options,
        ],
    )


@dataclass
class Output:
    """Elements of the loss's gradient as it enters the network."""

    zeros: int = 0
    count: int = 0

    @contextmanager
    def watched(self, policy: Any) -> Iterator[None]:
        def forward(module: Any, arguments: Any, output: Any) -> None:
            if output[0].requires_grad and output[0].dtype == torch.float16:
                output[0].register_hook(self._count)

        handle = policy._tuning.transformer.register_forward_hook(forward)
        yield
        handle.remove()

    def _count(self, gradient: torch.Tensor) -> None:
        self.zeros += int((gradient == 0).sum())
        self.count += gradient.numel()

    @property
    def share(self) -> float:
        return self.zeros / self.count


def measured(recipe: Recipe, scale: float | None = None) -> tuple[Precision, Output]:
    """Away from the reference, so that a KL term has a gradient."""
    torch.manual_seed(0)
    policy = load_policy(recipe.model, CPU, with_reference=True)
    assert policy.latent_shape == (16, 64, 64)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.02 * torch.randn_like(parameter)
    weights = [p.detach().clone() for p in policy.trainable().values()]
    used = make_loss_scale(policy, recipe) if scale is None else LossScale(scale, dynamic=True)
    output = Output()
    with output.watched(policy):
        found = measure_precision(policy, recipe, PROMPT, used)
    for parameter, weight in zip(policy.trainable().values(), weights, strict=True):
        assert torch.equal(parameter, weight)
    assert {p.dtype for p in policy._tuning.transformer.parameters()} == {  # type: ignore[attr-defined]
        torch.float16,
        torch.float32,
    }
    return found, output


CASES = [
    ("sd35m_ocr", ()),
    ("sd35m_ocr", ("update.kl=gaussian", "update.beta=0.04")),
    ("sd35m_ocr", ("update.kl=gaussian_unscaled", "update.beta=0.04")),
    ("sd35m_ocr", ("update.kl=velocity", "update.beta=0.04")),
    ("sd35m_ocr", ("sampling.dynamics=dance_sde", "sampling.noise_level=0.3")),
    ("sd35m_ocr", ("update.objective=dppo",)),
    ("sd35m_ocr_guard", ()),
    ("sd35m_pickscore_fast_nocfg", ()),
    ("sd35m_pickscore_fast_nocfg", ("update.kl=velocity", "update.beta=0.04")),
    ("sd35m_ocr_nft", ()),
    ("sd35m_ocr_nft", ("update.kl=velocity", "update.beta=0.04", "forward.old_beta=0.1")),
    ("sd35m_geneval_awm", ()),
    ("sd35m_ocr_nft", ("update.objective=sft",)),
    ("sd35m_ocr_nft", ("update.objective=orw",)),
    ("sd35m_ocr_nft", ("update.objective=dpo", "sampling.micro_batch=24")),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_float16_keeps_the_gradient(published: Path, name: str, options: tuple[str, ...]) -> None:
    found, output = measured(published_recipe(published, name, *options))
    assert output.count > 0
    assert output.share < 0.01
    assert found.zeros < 0.01
    assert found.cosine >= 0.99
    assert found.loss_scale >= 2**18


def test_float16_keeps_the_gradient_of_a_reward(published: Path) -> None:
    """It is larger per element than one that a mean divides, so the scale settles lower."""
    short = ("sampling.num_steps=10", "sampling.window.lo=6")
    found, output = measured(published_recipe(published, "sd35m_pickscore_refl", *short))
    assert output.share < 0.01
    assert found.zeros < 0.01
    assert found.cosine >= 0.99
    assert found.log_ratio_error is None
    assert 2**10 < found.loss_scale < 2**18


@pytest.mark.parametrize("name", ["sd35m_ocr", "sd35m_pickscore_fast_nocfg", "sd35m_ocr_nft"])
def test_without_a_scale_it_is_lost(published: Path, name: str) -> None:
    found, output = measured(published_recipe(published, name), scale=1.0)
    assert output.share > 0.9
    assert found.zeros > 0.8
    assert found.cosine < 0.9
    assert "the gradient is lost to rounding: set model.dtype = float32" in found.explain()


def test_an_overflow_halves_the_scale(published: Path) -> None:
    found, _ = measured(published_recipe(published, "sd35m_ocr"), scale=2.0**60)
    assert 2**21 < found.loss_scale < 2**60
    assert found.cosine >= 0.99


def test_doctor_measures_it(published: Path) -> None:
    recipe = published_recipe(published, "sd35m_ocr")
    policy = load_policy(recipe.model, CPU, with_reference=False)
    check = check_precision(policy, recipe, PROMPT)
    assert check.ok, check.message
    assert "float16 beside float32: 0.0% of the gradient is 0, cosine " in check.message
    assert "clip_range 0.0001" in check.message
    u = recipe.update.model_copy(update={"clip_range": 1e-9})
    check = check_precision(policy, recipe.model_copy(update={"update": u}), PROMPT)
    assert not check.ok
    assert "the clip acts on rounding: set model.dtype = float32, or update.clip_range to" in (
        check.message
    )


def test_doctor_has_nothing_to_measure_in_float32(recipe_data: dict[str, Any]) -> None:
    recipe = parse_recipe(recipe_data)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    check = check_precision(policy, recipe, PROMPT)
    assert check.ok
    assert check.message == "computes in float32 on cpu"
