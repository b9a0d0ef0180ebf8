"""Going on with a run: what its recipe may have become meanwhile, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Recipe, save_resolved
from flow_trainer.recipe.changes import (
    RECIPE_FILE,
    RUN,
    WEIGHTS,
    changed_keys,
    explain,
    refuse,
    saved_recipe,
)
from flow_trainer.recipe.prompts import Prompt, prompts_digest
from flow_trainer.record.checkpoint import Progress

Changes = dict[str, tuple[Any, Any]]


def recipe_changes(recipe: Recipe, folder: Path) -> Changes:
    """What differs from the recipe that the run in `folder` was made with. Raises ConfigError when
    that makes it another run; nothing differs where there is no run yet."""
    before = saved_recipe(folder)
    if before is None or not any((folder / "checkpoints").glob("epoch_*/state.json")):
        return {}
    changes = changed_keys(before, recipe)
    refuse(changes, RUN, folder / RECIPE_FILE)
    return changes


def check_prompts(progress: Progress, prompts: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """Remembers the prompts by split; returns a line for each evaluation that is another one now. The
    best validation score is forgotten with its prompts. Raises ConfigError when the training prompts are
    no longer those of the run: an epoch's prompts are positions in their file."""
    digest = prompts_digest(prompts["train"])
    if progress.prompts not in (None, digest):
        raise ConfigError(
            "prompts.train holds other prompts than the run began with: restore the file, or start a "
            "run of its own with --out"
        )
    progress.prompts = digest
    lines = []
    for split in ("validation", "heldout"):
        digest = prompts_digest(prompts[split]) if prompts.get(split) else ""
        if progress.evaluated.setdefault(split, digest) != digest:
            lines.append(f"from here on prompts.{split} holds other prompts: figures before differ")
            progress.evaluated[split] = digest
            if split == "validation":
                progress.best_score = progress.best_epoch = None
    return lines


def check_data(progress: Progress, digest: str | None) -> None:
    """The same for image-text data, by its captions and its images' names."""
    if digest is not None and progress.data not in (None, digest):
        raise ConfigError(
            "[data] holds other images or captions than the run began with: restore them, or start a "
            "run of its own with --out"
        )
    progress.data = digest


def keep_recipe(recipe: Recipe, folder: Path, changes: Changes, epoch: int) -> None:
    """Writes recipe.json; the one before stays beside it where it differs."""
    path = folder / RECIPE_FILE
    if changes and path.exists():
        path.replace(folder / f"recipe_until_epoch_{epoch:05d}.json")
    save_resolved(recipe, path)


def what_is_said(
    progress: Progress | None, folder: Path, epochs: int, changes: Changes
) -> list[str]:
    """The lines that tell the user what --resume found."""
    if progress is None:
        return [f"no checkpoint in {folder}: starting from the beginning"]
    lines = [f"resuming after epoch {progress.epoch}"]
    lines += [f"from here on {explain(key, values)}" for key, values in changes.items()]
    if progress.epoch >= epochs:
        lines.append(f"nothing is left to train: epochs = {epochs}")
    return lines


def checkpoint_changes(recipe: Recipe, checkpoint: Path) -> list[str]:
    """For an evaluation: what of the model's settings differs from those that `checkpoint`, a folder
    in a run, was made with. Raises ConfigError when it is another model with these."""
    for run in list(checkpoint.absolute().parents)[:2]:
        before = saved_recipe(run)
        if before is not None:
            changes = changed_keys(before, recipe)
            refuse(changes, WEIGHTS, run / RECIPE_FILE)
            return [explain(k, v) for k, v in changes.items() if k.startswith("model.")]
    return []
