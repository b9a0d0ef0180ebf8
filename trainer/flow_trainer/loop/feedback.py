"""What the rewards say of an epoch: its scores and advantages, all at once or share by share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from flow_trainer.algorithm.advantages import (
    Advantages,
    combine_rewards,
    distinctness,
    group_advantages,
    large_enough,
)
from flow_trainer.loop.evaluate import stack_images
from flow_trainer.loop.run import Run
from flow_trainer.loop.sampling import Batch
from flow_trainer.loop.scoring import Job, Scorer
from flow_trainer.recipe import Recipe, Reward
from flow_trainer.record.scores import Scores, join_scores
from flow_trainer.record.watch import thumbnails

Hold = Callable[[int, list[str]], Callable[[], None]]
"""Called with the update that cannot begin and the rewards that are down; see `Scorer.collect`."""


class Feedback:
    """Scores of the samples behind `jobs`, micro-batches that no share's end divides.

    `ready` (u) blocks until update u can begin: with `scoring.overlap = "updates"` that is when its
    own share has scores, else when all samples have. `advantages` are filled in place, so an update
    that is handed them reads its share once `ready` has returned. `check` is called every few seconds
    while the first update waits; it may raise to leave.

    `sources` says which of the recipe's sources each prompt is of, `bonus` (P G,) what each sample gets
    beside its rewards.

    Of several ranks, each has the jobs of its own micro-batches and learns of all samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        scorer: Scorer,
        jobs: Sequence[Job],
        hold: Hold,
        check: Callable[[], None] = lambda: None,
        sources: Sequence[str] | None = None,
        bonus: np.ndarray | None = None,
    ) -> None:
        self._bonus = bonus
        self._sources = sources or [""] * recipe.sampling.prompts_per_epoch
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
        group = self._recipe.sampling.group_size
        prompts = slice(rows.start // group, rows.stop // group)
        found = self._advantages(part, rows)
        self.advantages.values[prompts] = found.values
        self.advantages.used[prompts] = found.used
        if rows.stop == self._recipe.images_per_epoch:
            self.scores.require_one()
            whole = self._advantages(self.scores, range(rows.stop))
            self.advantages.metrics.update(whole.metrics)

    def _advantages(self, scores: Scores, rows: range) -> Advantages:
        group = self._recipe.sampling.group_size
        rewards = {name: batch.values for name, batch in scores.rewards.items()}
        sources = self._sources[rows.start // group : rows.stop // group]
        bonus = None if self._bonus is None else self._bonus[rows.start : rows.stop]
        return epoch_advantages(self._recipe, rewards, scores.valid, sources, bonus)


def diversity_bonus(run: Run, batch: Batch) -> np.ndarray | None:
    """(P G,) on every rank, of all samples; None where the recipe gives none. All ranks call together."""
    weight = run.recipe.advantage.diversity
    if weight == 0:
        return None
    small = stack_images([thumbnails(images) for images in batch.images])
    gathered = run.world.gather_rows(batch.samples.rows, small)
    found: list[float] = []
    if run.world.is_main:
        group = run.recipe.sampling.group_size
        found = (weight * distinctness(torch.from_numpy(gathered), group)).tolist()
    return np.array(run.world.exchange(found)[0])


def epoch_advantages(
    recipe: Recipe,
    rewards: Mapping[str, np.ndarray],
    valid: np.ndarray,
    sources: Sequence[str] | None = None,
    bonus: np.ndarray | None = None,
) -> Advantages:
    """Advantages of an epoch's samples, from every reward's scores (B,) and valid (B,), B = P G, which
    source each of the P prompts is of (None: there are none), and what (B,) is added to the weighted sum
    of the rewards. Each source is normalised by itself, with its own rewards and weights."""
    grids = {
        name: values.reshape(-1, recipe.sampling.group_size) for name, values in rewards.items()
    }
    mask = valid.reshape(-1, recipe.sampling.group_size)
    added = np.zeros(mask.shape) if bonus is None else bonus.reshape(mask.shape)
    terms = recipe.source_rewards
    if sources is None or len(terms) == 1:
        (only,) = terms.values()
        return _source_advantages(recipe, grids, mask, only, added)
    named = np.array(sources)
    parts = {name: named == name for name in terms if name in sources}
    found = {
        name: _source_advantages(
            recipe,
            {n: grid[rows] for n, grid in grids.items()},
            mask[rows],
            terms[name],
            added[rows],
        )
        for name, rows in parts.items()
    }
    values, used = (
        torch.zeros(mask.shape, dtype=torch.float64),
        torch.zeros(mask.shape, dtype=torch.bool),
    )
    for name, rows in parts.items():
        values[rows], used[rows] = found[name].values, found[name].used
    return Advantages(values, used, _joined_metrics(found))


def _source_advantages(
    recipe: Recipe,
    rewards: Mapping[str, np.ndarray],
    valid: np.ndarray,
    terms: Mapping[str, Reward],
    added: np.ndarray,
) -> Advantages:
    """Of rewards, valid and what is added to them, (P, G)."""
    a = recipe.advantage
    used = large_enough(valid, recipe.scoring.min_group)
    total = combine_rewards(
        {name: rewards[name] for name in terms if name in rewards},
        terms,
        used,
        normalise="prompt" if a.std == "gdpo" else None,
    )
    return group_advantages(
        total + added,
        used,
        std=a.std,
        min_group=recipe.scoring.min_group,
        clip=a.clip,
        scale=a.scale,
    )


def _joined_metrics(parts: Mapping[str, Advantages]) -> dict[str, float]:
    """Over the groups of all sources that are used, and of each source by itself."""
    groups = {name: int(part.used.any(1).sum()) for name, part in parts.items()}
    joined = {
        metric: sum(parts[name].metrics[metric] * groups[name] for name in parts)
        / max(sum(groups.values()), 1)
        for metric in ("group_std", "zero_std_ratio")
    }
    joined["dropped_groups"] = sum(part.metrics["dropped_groups"] for part in parts.values())
    own = {f"{n}/{key}": value for n, part in parts.items() for key, value in part.metrics.items()}
    return {**joined, **own}
