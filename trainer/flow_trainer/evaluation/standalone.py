"""`flow-grpo evaluate`: a checkpoint on its own, without a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from flow_trainer.errors import ConfigError
from flow_trainer.loop.evaluate import evaluate
from flow_trainer.loop.resuming import checkpoint_changes
from flow_trainer.loop.scoring import Scorer
from flow_trainer.models.load import load_policy
from flow_trainer.parallel.world import pick_device
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import read_split
from flow_trainer.record.checkpoint import load_weights
from flow_trainer.record.lock import make_folder
from flow_trainer.record.runlog import image_grid


def evaluate_checkpoint(
    recipe: Recipe,
    *,
    split: str,
    checkpoint: Path | None,
    num_steps: int | None,
    images_per_prompt: int,
    out: Path | None,
) -> dict[str, Any]:
    """Evaluates a checkpoint folder (None: the base model) on a prompt split; returns the summary
    and, with `out`, leaves summary.json and images.png there."""
    prompts = read_split(recipe.prompts, split)
    if not prompts:
        raise ConfigError(f"the recipe has no prompts.{split}")
    if checkpoint is not None:
        for line in checkpoint_changes(recipe, checkpoint):
            print(f"evaluated with {line} in training", file=sys.stderr)
    if out is not None:
        make_folder(out)
    images = max(recipe.images_per_epoch, len(prompts) * images_per_prompt)
    scorer = Scorer(
        recipe.trained,
        recipe.scoring,
        images_per_epoch=images,
        sources=recipe.source_rewards,
    )
    try:
        scorer.wait_ready(scorer.timeout_s)
        policy = load_policy(recipe.model, pick_device(recipe.device), with_reference=False)
        if checkpoint is not None:
            load_weights(policy, checkpoint)
        result = evaluate(policy, scorer, recipe, prompts, images_per_prompt, num_steps)
    finally:
        scorer.close()
    summary = {
        "checkpoint": str(checkpoint or recipe.model.adapter or recipe.model.path),
        "split": split,
        "steps": num_steps or recipe.evaluation.num_steps,
        **result.summary(),
    }
    if out is not None:
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        grid = image_grid(result.images, columns=max(images_per_prompt, 8))
        Image.fromarray(grid).save(out / "images.png")
    return summary
