"""A recipe for a minuscule SD3 pipeline of the real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, parse_recipe
from tiny_pipelines import build


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sd3", tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("red\ngreen\nblue\nblack\nwhite\n")
    return path


@pytest.fixture
def recipe_data(pipeline_folder: Path, prompts_file: Path) -> dict[str, Any]:
    """Sections of a recipe that trains the minuscule model; change what the test is about."""
    return {
        "name": "tiny",
        "seed": 3,
        "epochs": 3,
        "device": "cpu",
        "model": {
            "path": str(pipeline_folder),
            "height": 8,
            "width": 8,
            "guidance": 1.0,
            "max_sequence_length": 0,
            "tuning": "full",
        },
        "prompts": {"train": str(prompts_file)},
        "sampling": {
            "num_steps": 4,
            "prompts_per_epoch": 2,
            "group_size": 4,
            "micro_batch": 4,
        },
        "rewards": {"bright": {"url": "http://127.0.0.1:1"}},
        "update": {"learning_rate": 1e-3, "clip_range": 1e-3},
        "ema": {"interval": 1},
        "evaluation": {"every": 0, "num_steps": 4},
        "checkpoints": {"every": 1, "keep": 2},
        "logging": {"tensorboard": False, "image_every": 0},
    }


@pytest.fixture
def recipe(recipe_data: dict[str, Any]) -> Recipe:
    return parse_recipe(recipe_data)


@pytest.fixture
def policy(recipe: Recipe) -> Policy:
    return load_policy(recipe.model, torch.device("cpu"), with_reference=True)
