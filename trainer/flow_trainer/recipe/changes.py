"""What a run's recipe may be changed to when it goes on, and a checkpoint's when it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.load import load_recipe
from flow_trainer.recipe.recipe import Recipe

RECIPE_FILE = "recipe.json"
KEPT = ("checkpoints", "best", "images", "heldout", "tensorboard", "wandb")
"""Folders of a run."""
WEIGHTS = (
    "model.family",
    "model.path",
    "model.revision",
    "model.tuning",
    "model.lora_rank",
    "model.lora_alpha",
    "model.adapter",
)
"""What gives saved weights their meaning: with another of these they are another policy."""
RUN = (
    *WEIGHTS,
    "seed",
    "model.height",
    "model.width",
    "update.objective",
    "update.optimizer",
    "ema.enabled",
)
"""What a run is one run by. Everything else may change between two epochs, and is said."""


def refuse_inside_a_run(folder: Path) -> None:
    """Raises ConfigError where `folder` is a run's checkpoint or another of the folders that a run keeps: a
    run that begins there would spoil it."""
    path = folder.absolute()
    for own in (path, path.parent):
        run = own.parent
        if own.name in KEPT and (run / RECIPE_FILE).exists() and (run / "checkpoints").is_dir():
            raise ConfigError(f"{folder} lies in the run {run}: name that, or another folder")


def saved_recipe(run: Path) -> Recipe | None:
    """The recipe that a run folder holds; None when there is none. Raises ConfigError when it cannot
    be read."""
    path = run / RECIPE_FILE
    if not path.exists():
        return None
    try:
        return load_recipe(path)
    except ConfigError as error:
        raise ConfigError(
            f"{error}\n{path} says what the run was made with: restore it, or remove it to go on "
            "unchecked"
        ) from None


def changed_keys(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Every `section.key` whose value differs, with both values."""
    old, new = _flat(before.model_dump()), _flat(now.model_dump())
    keys = [*new, *(key for key in old if key not in new)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def refuse(changes: dict[str, tuple[Any, Any]], fixed: Sequence[str], made_with: Path) -> None:
    """Raises ConfigError for changes of `fixed` keys."""
    wrong = [key for key in fixed if key in changes]
    if wrong:
        raise ConfigError(
            f"{', '.join(explain(key, changes[key]) for key in wrong)} in {made_with}: leave it as it "
            f"was (use {made_with} as the recipe), or start a run of its own with --out; if the same "
            "weights only lie elsewhere now, correct that file"
        )


def explain(key: str, values: tuple[Any, Any]) -> str:
    before, now = values
    return f"{key} = {now} was {before}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
