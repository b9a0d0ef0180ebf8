"""Every line of `flow-grpo doctor` that can fail, made to fail: it says what, and the fix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.doctor import device as doctor_device
from flow_trainer.doctor.checks import Check
from flow_trainer.doctor.device import check_arithmetic, check_device, check_memory
from flow_trainer.doctor.examine import examine, uneven_micro_batches
from flow_trainer.doctor.services import check_reward
from flow_trainer.errors import ConfigError
from flow_trainer.models.architectures import inspect
from flow_trainer.models.hub import can_load
from flow_trainer.models.memory import memory
from flow_trainer.recipe import Recipe, parse_recipe
from flow_trainer.recipe.prompts import Prompt
from model_hub import COMMIT, model_hub
from processes import BRIGHTNESS, Services

ChangeRecipe = Callable[..., Recipe]


@pytest.fixture
def change(recipe_data: dict[str, Any]) -> ChangeRecipe:
    def make(**sections: dict[str, Any]) -> Recipe:
        for name, values in sections.items():
            recipe_data[name] = {**recipe_data.get(name, {}), **values}
        return parse_recipe(recipe_data)

    return make


def rewards(recipe: Recipe) -> list[Check]:
    return list(check_reward("bright", recipe, Prompt("red")))


@pytest.mark.system
def test_a_service_is_tried_with_an_image_of_the_recipes_size(
    services: Services, change: ChangeRecipe
) -> None:
    jpeg = services.start("-m", "reward_services", "jpeg")
    other = services.start("-m", "reward_services", "jpeg", "--max-image-side", "4")
    (check,) = rewards(change(rewards={"bright": {"url": jpeg.http}}))
    assert check.ok, check.message
    assert "serves jpeg" in check.message
    recipe = change(rewards={"bright": {"url": other.grpc}}, scoring={"encoding": "png"})
    (check,) = rewards(recipe)
    assert not check.ok
    assert "a 8x8 image was not scored" in check.message
    clip = {"url": jpeg.http, "clip": [5000, 6000]}
    (check,) = rewards(change(rewards={"bright": clip}))
    assert "rewards.bright.clip = [5000, 6000] leaves nothing of that range" in check.message
    follows = change(
        rewards={"bright": {"url": jpeg.http, "clip": None}},
        sampling={"dynamics": "ode", "window": {"kind": "first", "lo": 2}},
        update={"objective": "refl", "updates_per_epoch": 1},
    )
    (check,) = rewards(follows)
    assert "which offers no gradient" in check.message
    bright = services.start(BRIGHTNESS)
    (check,) = rewards(change(rewards={"bright": {"url": bright.http}}))
    assert check.ok, check.message


@pytest.mark.system
def test_replicas_must_agree(services: Services, change: ChangeRecipe) -> None:
    urls = [
        services.start("-m", "reward_services", "jpeg").http,
        services.start("-m", "reward_services", "jpeg", "--score", "incompressibility_kb").http,
        "http://127.0.0.1:9",
    ]
    first, second, third, last = rewards(change(rewards={"bright": {"url": urls}}))
    assert first.ok
    assert second.ok
    assert not third.ok
    assert "start it (reward-serve)" in third.message
    assert not last.ok
    assert "different revisions" in last.message


def test_a_missing_token_is_a_line_too(change: ChangeRecipe) -> None:
    (check,) = rewards(change(rewards={"bright": {"url": "http://x", "token_env": "NO_SUCH"}}))
    assert not check.ok
    assert "set that variable" in check.message


def test_device(change: ChangeRecipe, recipe_data: dict[str, Any]) -> None:
    assert check_device(change()).ok
    recipe_data["device"] = "gpu"
    check = check_device(parse_recipe(recipe_data))
    assert not check.ok
    assert "use auto, cpu or cuda" in check.message
    if not torch.cuda.is_available():
        recipe_data["device"] = "cuda"
        check = check_device(parse_recipe(recipe_data))
        assert not check.ok
        assert "set device = cpu" in check.message


def test_memory(change: ChangeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = change()
    assert check_memory(recipe).ok
    monkeypatch.setattr(os, "sysconf", lambda name: 700)  # 490 kB
    check = check_memory(recipe)
    assert not check.ok
    assert "gradient_checkpointing = true, set update.optimizer = adamw8bit" in check.message
    assert "train on more GPUs" in check.message
    assert "on each of 8 GPUs" in check_memory(recipe, 8).message


def test_arithmetic_finds_a_wrong_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_arithmetic(torch.device("cpu")).ok
    from flow_trainer.algorithm.dynamics import DYNAMICS

    wrong = {**DYNAMICS, "cps": DYNAMICS["flow_sde"]}
    monkeypatch.setattr(doctor_device, "DYNAMICS", wrong)
    check = check_arithmetic(torch.device("cpu"))
    assert not check.ok
    assert "another torch" in check.message


def test_weights(tmp_path: Path, pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    assert can_load(str(pipeline_folder), None).startswith("the folder")
    with pytest.raises(ConfigError, match=r"has no model_index\.json"):
        can_load(str(tmp_path), None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = {"model_index.json": b"{}"}
    for gated, message in ((True, "is gated and no token is set"), (False, None)):
        with model_hub(files, gated=gated) as address:
            template = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            if message is None:
                assert "readable with no token" in can_load("owner/model", COMMIT)
                with pytest.raises(ConfigError, match="the hub has no owner/other"):
                    can_load("owner/other", COMMIT)
                continue
            with pytest.raises(ConfigError, match=message):
                can_load("owner/model", COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the hub cannot be asked"):
        can_load("owner/model", COMMIT)


def test_what_cannot_load_is_not_loaded(
    recipe_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flow_trainer.doctor.services.READY_TIMEOUT_S", 0.1)
    recipe_data["model"]["path"] = str(tmp_path)
    recipe_data["prompts"]["train"] = str(tmp_path / "no.txt")
    checks = {check.name: check for check in examine(parse_recipe(recipe_data), tmp_path)}
    assert [name for name, check in checks.items() if not check.ok] == [
        "prompts",
        "reward bright",
        "weights",
        "model",
    ]
    assert "correct prompts.train, or write it" in checks["prompts"].message
    assert "see weights" in checks["model"].message


def test_what_fits_only_divided_is_not_loaded(
    recipe_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flow_trainer.doctor.services.READY_TIMEOUT_S", 0.1)
    recipe = parse_recipe(
        {**recipe_data, "model": {**recipe_data["model"], "dtype": "float32"}}  # as on the CPU
    )
    architecture = inspect(recipe.model.path, recipe.model.family, recipe.model.lora_rank)
    assert architecture is not None
    one, eight = (memory(recipe, architecture, gpus).peak for gpus in (1, 8))
    assert eight < one
    monkeypatch.setattr(doctor_device, "_memory", lambda device: (one + eight) / 2)
    checks = {check.name: check for check in examine(recipe, tmp_path, gpus=8)}
    assert checks["memory"].ok
    assert (
        checks["model"].message == "not loaded: it fits divided over the GPUs, not this one alone"
    )
    assert not check_memory(recipe).ok


@pytest.mark.parametrize(
    ("share", "micro_batch", "hint"),
    [
        (4, 16, None),  # smaller than a micro-batch
        (16, 16, None),
        (64, 16, None),
        (1, 1, None),
        (17, 16, None),  # only 1 divides it, which would be slower
        (34, 16, None),
        (
            100,
            16,
            "an update's 100 images are 6 of sampling.micro_batch = 16 and one of 4: 10 divides",
        ),
        (
            576,
            10,
            "an update's 576 images are 57 of sampling.micro_batch = 10 and one of 6: 9 divides",
        ),
        (
            24,
            16,
            "an update's 24 images are 1 of sampling.micro_batch = 16 and one of 8: 12 divides",
        ),
    ],
)
def test_uneven_micro_batches_have_a_hint_where_there_is_a_way_out(
    share: int, micro_batch: int, hint: str | None
) -> None:
    said = uneven_micro_batches(share, micro_batch)
    assert said.startswith(f"; {hint}") if hint else said == ""
