"""Recipes of several processes, scored by a real service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from processes import Service


@pytest.fixture
def data(brightness: Service, recipe_data: dict[str, Any], prompts_file: Path) -> dict[str, Any]:
    """Four micro-batches to each of an epoch's two updates; every path of the loop."""
    return recipe_data | {
        "epochs": 2,
        "rewards": {"brightness": {"url": brightness.http}},
        "prompts": {key: str(prompts_file) for key in ("train", "validation", "heldout")},
        "model": recipe_data["model"] | {"tuning": "lora", "lora_rank": 2},
        "sampling": recipe_data["sampling"] | {"prompts_per_epoch": 4, "micro_batch": 2},
        "update": recipe_data["update"] | {"kl": "gaussian", "beta": 0.01},
        "evaluation": {"every": 2, "num_steps": 2},
        "logging": {"tensorboard": False, "image_every": 1},
    }


@pytest.fixture
def brief(data: dict[str, Any], prompts_file: Path) -> dict[str, Any]:
    """Without evaluations."""
    return data | {"prompts": {"train": str(prompts_file)}, "evaluation": {"every": 0}}


@pytest.fixture
def full(data: dict[str, Any]) -> dict[str, Any]:
    """Full fine-tuning, which several processes shard."""
    return data | {"model": data["model"] | {"tuning": "full"}}
