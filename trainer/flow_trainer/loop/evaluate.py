"""Evaluation: ODE sampling at its own number of steps, the same noise every time, the same rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flow_trainer.loop.rollout import generate
from flow_trainer.loop.scoring import Job, Scorer
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.scores import Scores

Hold = Callable[[list[str]], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    scores: Scores
    images: np.ndarray
    """(N, H, W, 3) uint8, prompt-major; of several ranks, only the first has them. Empty when nobody
    asked for them."""
    prompts: list[str]
    """One per image."""

    def summary(self) -> dict[str, float | int | None]:
        """Mean score, mean of every reward and sub-score, standard error, failed samples."""
        valid = self.scores.values[self.scores.valid]
        error = float(valid.std(ddof=1) / np.sqrt(len(valid))) if len(valid) > 1 else None
        return {
            "score": self.scores.mean(),
            "standard_error": error,
            **self.scores.reward_means(),
            "images": len(self.prompts),
            "failed": int((~self.scores.valid).sum()),
        }


def stack_images(batches: Sequence[torch.Tensor]) -> np.ndarray:
    """Micro-batches (b, H, W, 3) uint8 as one array; an empty one for a rank that drew nothing."""
    return torch.cat(list(batches)).numpy() if batches else np.zeros(0, np.uint8)


def evaluate(
    policy: Policy,
    scorer: Scorer,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    num_steps: int | None = None,
    world: World = ALONE,
    hold: Hold | None = None,
    keep_images: bool = True,
) -> Evaluation:
    """Scores `images_per_prompt` images of each prompt with the weights the policy has now. `hold` is
    told of an outage; see `Scorer.collect`. `keep_images`: gathers them on the first rank."""
    images: list[torch.Tensor] = []
    jobs: list[Job] = []
    drawn: list[int] = []
    expanded = [prompt for prompt in prompts for _ in range(images_per_prompt)]

    def on_images(rows: range, batch: torch.Tensor) -> None:
        if keep_images:
            images.append(batch)
            drawn.extend(rows)
        jobs.append(scorer.submit(rows, batch, expanded[rows.start : rows.stop]))

    generate(
        policy,
        recipe,
        prompts,
        num_steps or recipe.evaluation.num_steps,
        images_per_prompt,
        on_images,
        world,
    )
    scores = scorer.collect(jobs, hold)
    scores.require_one()
    return Evaluation(
        scores=scores,
        images=world.gather_rows(drawn, stack_images(images)) if keep_images else stack_images([]),
        prompts=[prompt.text for prompt in expanded],
    )
