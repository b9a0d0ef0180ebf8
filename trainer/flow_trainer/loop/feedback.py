"""What the rewards say of an epoch: its scores and advantages, all at once or share by share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from flow_trainer.algorithm.advantages import (
    Advantages,
    combine_rewards,
    group_advantages,
    large_enough,
)
from flow_trainer.loop.scoring import Job, Scorer
from flow_trainer.recipe import Recipe
from flow_trainer.record.scores import Scores, join_scores

Hold = Callable[[int, list[str]], Callable[[], None]]
"""Called with the update that cannot begin and the rewards that are down; see `Scorer.collect`."""


class Feedback:
    """Scores of the samples behind `jobs`, micro-batches that no share's end divides.

    `ready` (u) blocks until update u can begin: with `scoring.overlap = "updates"` that is when its
    own share has scores, else when all samples have. `advantages` are filled in place, so an update
    that is handed them reads its share once `ready` has returned. `check` is called every few seconds
    while the first update waits; it may raise to leave.

    Of several ranks, each has the jobs of its own micro-batches and learns of all samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        scorer: Scorer,
        jobs: Sequence[Job],
        hold: Hold,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._recipe = recipe
        self._scorer = scorer
        self._jobs = jobs
        self._hold = hold
        self._check = check
        self._parts: list[Scores] = []
        shape = (recipe.sampling.prompts_per_epoch, recipe.sampling.group_size)
        self.advantages = Advantages(
            torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bool), {}
        )

    def ready(self, update: int) -> None:
        """Raises what `Scorer.collect` raises, and ScoringError when a whole epoch has no score."""
        if self._recipe.scoring.overlap == "updates":
            share = self._recipe.share
            self._take(update, range(update * share, (update + 1) * share))
        elif update == 0:
            self._take(update, range(self._recipe.images_per_epoch))

    @property
    def scores(self) -> Scores:
        """Those that are there so far, in the order of their rows."""
        return join_scores(self._parts)

    @property
    def wait_s(self) -> float:
        return sum(part.wait_s for part in self._parts)

    def _take(self, update: int, rows: range) -> None:
        jobs = [job for job in self._jobs if job.rows.start in rows]
        # once an update has begun, the way out leads through the epoch's end
        check = self._check if update == 0 else lambda: None
        part = self._scorer.collect(jobs, lambda down: self._hold(update, down), check)
        self._parts.append(part)
        found = self._advantages(part)
        group = self._recipe.sampling.group_size
        prompts = slice(rows.start // group, rows.stop // group)
        self.advantages.values[prompts] = found.values
        self.advantages.used[prompts] = found.used
        if rows.stop == self._recipe.images_per_epoch:
            self.scores.require_one()
            self.advantages.metrics.update(self._advantages(self.scores).metrics)

    def _advantages(self, scores: Scores) -> Advantages:
        rewards = {name: batch.values for name, batch in scores.rewards.items()}
        return epoch_advantages(self._recipe, rewards, scores.valid)


def epoch_advantages(
    recipe: Recipe, rewards: Mapping[str, np.ndarray], valid: np.ndarray
) -> Advantages:
    """Advantages of an epoch's samples, from every reward's scores (B,) and valid (B,), B = P G."""
    a, shape = recipe.advantage, (-1, recipe.sampling.group_size)
    used = large_enough(valid.reshape(shape), recipe.scoring.min_group)
    total = combine_rewards(
        {name: values.reshape(shape) for name, values in rewards.items()},
        recipe.trained,
        used,
        normalise="prompt" if a.std == "gdpo" else None,
    )
    return group_advantages(total, used, std=a.std, min_group=recipe.scoring.min_group, clip=a.clip)
