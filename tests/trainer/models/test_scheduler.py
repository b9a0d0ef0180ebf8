"""The flags of a checkpoint's scheduler: followed as its pipeline does, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.errors import ConfigError
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.load import load_policy
from flow_trainer.recipe import parse_recipe
from policy_steps import CPU
from tiny_pipelines import MODELS, build

FOLLOWED: list[dict[str, Any]] = [
    {},
    {"shift": 1.0},
    {"use_dynamic_shifting": False, "shift": 1.0},
    {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"use_dynamic_shifting": True, "base_shift": 0.2, "max_shift": 2.0, "max_image_seq_len": 300},
    {"shift_terminal": 0.1},
    {"shift_terminal": None},
]
REFUSED: list[tuple[str, Any]] = [
    ("use_karras_sigmas", True),
    ("use_exponential_sigmas", True),
    ("use_beta_sigmas", True),
    ("invert_sigmas", True),
    ("stochastic_sampling", True),
    ("num_train_timesteps", 100),
]


@pytest.fixture(params=list(MODELS), scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(family, tmp_path_factory.mktemp(family))


@pytest.fixture
def scheduler(folder: Path) -> Any:
    """Its config as a dictionary; what a test writes is undone."""
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    yield path
    path.write_text(before)


def load(data: dict[str, Any], family: str, folder: Path, **changes: Any) -> DiffusersPolicy:
    model = {"family": family, "path": str(folder), "height": 8, "width": 8, **MODELS[family]}
    model |= changes
    recipe = parse_recipe({**data, "model": {**model, "lora_rank": 2}})
    policy = load_policy(recipe.model, CPU, with_reference=False)
    assert isinstance(policy, DiffusersPolicy)
    return policy


def stock_sigmas(policy: DiffusersPolicy, family: str, folder: Path, num_steps: int) -> Any:
    """Those of a call of the family's own pipeline."""
    options = policy._family.load_options(policy._config)
    pipeline = policy._family.pipeline_class.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        prompt=["red"],
        height=8,
        width=8,
        num_inference_steps=num_steps,
        max_sequence_length=MODELS[family]["max_sequence_length"],
        output_type="latent",
    )
    return pipeline.scheduler.sigmas


def test_flags_are_followed(
    recipe_data: dict[str, Any], family: str, folder: Path, scheduler: Path
) -> None:
    config = json.loads(scheduler.read_text())
    for flags in FOLLOWED:
        scheduler.write_text(json.dumps({**config, **flags}))
        policy = load(recipe_data, family, folder)
        for num_steps in (2, 5):
            stock = stock_sigmas(policy, family, folder, num_steps)
            torch.testing.assert_close(
                policy.sigmas(num_steps), stock, atol=1e-6, rtol=0, msg=f"{family} {flags}"
            )


@pytest.mark.parametrize(("flag", "value"), REFUSED)
def test_flags_that_are_not_followed_are_refused(
    flag: str, value: Any, recipe_data: dict[str, Any], family: str, folder: Path, scheduler: Path
) -> None:
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), flag: value}))
    with pytest.raises(ConfigError, match=flag):
        load(recipe_data, family, folder)


@pytest.mark.parametrize(
    "flags",
    [
        {"use_dynamic_shifting": False, "shift": 0.0},
        {"use_dynamic_shifting": False, "shift": -1.0},
        {"use_dynamic_shifting": False, "shift": float("nan")},
        {"use_dynamic_shifting": True, "max_shift": float("inf")},
        {
            "use_dynamic_shifting": True,
            "time_shift_type": "linear",
            "base_shift": -9.0,
            "max_shift": -9.0,
        },
        {"shift_terminal": 2.0},
    ],
)
def test_flags_that_make_no_schedule_are_refused(
    flags: dict[str, Any],
    recipe_data: dict[str, Any],
    family: str,
    folder: Path,
    scheduler: Path,
) -> None:
    """They gave NaN, or noise above 1, without a word."""
    if "max_shift" in flags and family == "flux2_klein":
        pytest.skip("its pipeline computes mu from the tokens alone")
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), **flags}))
    with pytest.raises(ConfigError, match="that is no schedule"):
        load(recipe_data, family, folder).sigmas(4)


def test_another_scheduler_is_refused(
    recipe_data: dict[str, Any], folder: Path, family: str
) -> None:
    index = folder / "model_index.json"
    before = index.read_text()
    other = json.loads(before) | {"scheduler": ["diffusers", "FlowMatchHeunDiscreteScheduler"]}
    index.write_text(json.dumps(other))
    try:
        with pytest.raises(ConfigError, match="FlowMatchHeunDiscreteScheduler"):
            load(recipe_data, family, folder)
    finally:
        index.write_text(before)


def test_another_pipeline_is_refused(pipeline_folder: Path, recipe_data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"StableDiffusion3Pipeline.*model\.family = flux"):
        load(recipe_data, "flux", pipeline_folder)


def test_guidance_of_a_distilled_checkpoint_is_refused(
    recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    folder = build("flux2_klein", tmp_path)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "is_distilled": True}))
    with pytest.raises(ConfigError, match=r"model\.guidance = 4: .* is distilled"):
        load(recipe_data, "flux2_klein", folder)
    load(recipe_data, "flux2_klein", folder, guidance=1.0)


def test_what_is_beyond_the_positions_of_z_image_is_refused(
    recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    folder = build("z_image", tmp_path)
    for values, message in (
        ({"max_sequence_length": 225}, r"max_sequence_length = 225: .* at most 224 text tokens"),
        ({"width": 512}, r"512: .* at most 256x256 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(recipe_data, "z_image", folder, **values)
    policy = load(recipe_data, "z_image", folder, max_sequence_length=224)
    longest = policy.encode(["a" * 300])
    assert longest.tokens.shape[1] == 224
    policy.velocity(torch.randn(1, *policy.latent_shape), torch.ones(1), longest)


@pytest.mark.parametrize("family", ["z_image", "flux2_klein"], indirect=True)
def test_a_length_that_no_prompt_fits_into_is_refused(
    recipe_data: dict[str, Any], family: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=r"max_sequence_length = 17: .* no prompt would reach"):
        load(recipe_data, family, folder, max_sequence_length=17)
    load(recipe_data, family, folder, max_sequence_length=18)


def test_a_size_beyond_the_positions_is_refused(recipe_data: dict[str, Any]) -> None:
    model = {**recipe_data["model"], "height": 1024}
    recipe = parse_recipe({**recipe_data, "model": model})
    with pytest.raises(ConfigError, match=r"model\.height.*at most 16 pixels"):
        load_policy(recipe.model, CPU, with_reference=False)
