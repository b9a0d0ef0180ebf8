"""An epoch's optimizer steps, whatever the objective: accumulate, sum over ranks, clip, step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flow_trainer.algorithm.ema import Ema
from flow_trainer.loop.finite import check_gradients
from flow_trainer.loop.rollout import shares
from flow_trainer.loop.updates.replay import step_chunks
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.sharding import whole
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe


@dataclass(slots=True)
class UpdateStats:
    """Sums over replayed (sample, step) pairs; `means` divides."""

    totals: dict[str, float] = field(default_factory=dict)
    count: int = 0
    ratio_error: float = 0.0
    """Largest |ratio - 1| of the epoch's first update, where the policy is still the sampler."""
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    updates: int = 0

    def add(self, values: dict[str, Tensor], count: int) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value.sum())
        self.count += count

    def join(self, world: World) -> None:
        """Over all ranks."""
        parts = world.exchange([self.totals, self.count, self.ratio_error])
        names = dict.fromkeys(name for totals, _, _ in parts for name in totals)
        self.totals = {name: sum(totals.get(name, 0.0) for totals, _, _ in parts) for name in names}
        self.count = sum(count for _, count, _ in parts)
        self.ratio_error = max(error for _, _, error in parts)

    def means(self) -> dict[str, float]:
        return {name: total / max(self.count, 1) for name, total in self.totals.items()}


def descend(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    recipe: Recipe,
    epoch: int,
    steps: list[int],
    wanted: Tensor,
    loss: Callable[[range, list[int], int, UpdateStats], Tensor],
    stats: UpdateStats,
    ready: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> None:
    """The epoch's optimizer steps: accumulates `loss` (rows, steps, number of the update, stats), a
    sum, over update u's share of the samples and divides by the planned number of (sample, step)
    pairs. Micro-batches without any sample `wanted` (B,), nonzero, are skipped; `ready` (u) is called
    before `wanted` is read for update u. Several ranks divide a share among them, and each takes the
    step of the summed gradient."""
    share, updates = recipe.share, recipe.update.updates_per_epoch
    for u, batches in enumerate(shares(recipe, recipe.images_per_epoch)):
        if ready is not None:
            ready(u)
        optimizer.zero_grad(set_to_none=True)
        for turn in world.turns(batches, lambda rows: bool(wanted[rows.start : rows.stop].any())):
            if not turn.rows:
                continue
            seen = stats if turn.counts else UpdateStats()
            for chunk in step_chunks(steps, recipe.update.steps_per_forward):
                total = loss(turn.rows, chunk, u, seen)
                (total / (share * len(steps)) if turn.counts else total * 0).backward()
        world.sum_gradients(policy.trainable().values())
        _step(policy, optimizer, recipe, epoch * updates + u, stats)
        if ema is not None:
            ema.update()
    stats.join(world)


def learning_rate(recipe: Recipe, update: int) -> float:
    """Linear warm-up, then linear decay to `final_learning_rate` at the last update."""
    u = recipe.update
    if update < u.warmup_updates:
        return u.learning_rate * (update + 1) / u.warmup_updates
    remaining = recipe.num_updates - 1 - u.warmup_updates
    progress = (update - u.warmup_updates) / remaining if remaining > 0 else 0.0
    return u.learning_rate * (1 + progress * (u.final_learning_rate - 1))


def _step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    update: int,
    stats: UpdateStats,
) -> None:
    rate = learning_rate(recipe, update)
    for group in optimizer.param_groups:
        group["lr"] = rate
    parameters = policy.trainable()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    total = whole(norm)
    check_gradients(total, parameters, update)
    torch.nn.utils.clip_grads_with_norm_(parameters.values(), recipe.update.max_grad_norm, norm)
    optimizer.step()
    stats.grad_norm = max(stats.grad_norm, float(total))
    stats.learning_rate = rate
    stats.updates += 1
