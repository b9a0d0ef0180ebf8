"""An epoch's optimizer steps, whatever the objective: accumulate, sum over ranks, clip, step.

Nothing here waits for the device between two backwards: what is logged is summed there, and what is not
finite is looked for once per update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flow_trainer.algorithm.ema import Ema
from flow_trainer.loop.finite import StepWatch, gradient_error, vanished_error
from flow_trainer.loop.rollout import shares
from flow_trainer.loop.updates.loss_scale import LossScale, make_loss_scale
from flow_trainer.loop.updates.replay import step_chunks
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.sharding import whole
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe


@dataclass(slots=True)
class UpdateStats:
    """Sums over replayed (sample, step) pairs; `means` divides. On the device until `join`."""

    totals: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    ratio_error: Any = 0.0
    """Largest |ratio - 1| of the epoch's first update, where the policy is still the sampler."""
    grad_norm: float | None = None
    """Largest of the epoch, before the clip; None when no update was taken."""
    learning_rate: float = 0.0
    updates: int = 0
    skipped: int = 0
    """Updates that overflowed float16 and were not taken."""
    watch: StepWatch = field(default_factory=StepWatch)
    beside: dict[str, float] = field(default_factory=dict)
    """Means over what was trained on beside the samples."""
    slope: Any = 0.0
    """Largest |dL/dv| of the current update, at the loss's scale."""

    def add(self, values: Mapping[str, Tensor], count: int) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value.sum(dtype=torch.float64)
        self.count += count

    def see_log_ratio(self, log_ratio: Tensor) -> None:
        """`log_ratio` (B,) of a policy that has not moved."""
        error = log_ratio.detach().exp().sub(1).abs().max()
        self.ratio_error = torch.maximum(error, torch.as_tensor(self.ratio_error).to(error))

    def see_velocity(self, v: Tensor) -> None:
        """Looks at the loss's gradient as it enters the network through its output `v`."""

        def look(gradient: Tensor) -> None:
            largest = gradient.abs().max()
            self.slope = torch.maximum(largest, torch.as_tensor(self.slope).to(largest))

        v.register_hook(look)

    def join(self, world: World) -> None:
        """Over all ranks."""
        values = [*self.totals.values(), self.ratio_error]
        *sums, error = torch.stack([torch.as_tensor(v).double() for v in values]).tolist()
        totals = dict(zip(self.totals, sums, strict=True))
        parts = world.exchange([totals, self.count, error])
        names = dict.fromkeys(name for totals, _, _ in parts for name in totals)
        self.totals = {name: sum(totals.get(name, 0.0) for totals, _, _ in parts) for name in names}
        self.count = sum(count for _, count, _ in parts)
        self.ratio_error = max(error for _, _, error in parts)

    def means(self) -> dict[str, float]:
        own = {name: total / max(self.count, 1) for name, total in self.totals.items()}
        return {**own, **self.beside}


Beside = Callable[[int, float, UpdateStats], None]
"""(number of the update, loss scale, its stats): adds to the gradients of every parameter."""


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
    scale: LossScale | None = None,
    beside: Beside | None = None,
) -> None:
    """The epoch's optimizer steps: accumulates `loss` (rows, steps, number of the update, stats), a
    sum, over update u's share of the samples and divides by the planned number of (sample, step)
    pairs. Micro-batches without any sample `wanted` (B,), nonzero, are skipped; `ready` (u) is called
    before `wanted` is read for update u. Several ranks divide a share among them, and each takes the
    step of the summed gradient. The loss is multiplied by `scale`, the run's; by default that of a run
    that begins. `beside` adds gradients that do not come from samples."""
    scale = scale or make_loss_scale(policy, recipe)
    pairs, updates = recipe.share * len(steps), recipe.update.updates_per_epoch
    chunks = list(step_chunks(steps, recipe.update.steps_per_forward))
    for u, batches in enumerate(shares(recipe, recipe.images_per_epoch)):
        if ready is not None:
            ready(u)
        optimizer.zero_grad(set_to_none=True)
        stats.slope = 0.0
        turns = world.turns(batches, lambda rows: bool(wanted[rows.start : rows.stop].any()))
        forwards = [(turn, chunk) for turn in turns if turn.rows for chunk in chunks]
        for number, (turn, chunk) in enumerate(forwards, 1):
            total = loss(turn.rows, chunk, u, stats if turn.counts else UpdateStats())
            policy.before_backward(last=beside is None and number == len(forwards))
            (total * scale.value / pairs if turn.counts else total * 0).backward()
        if beside is not None:
            beside(u, scale.value, stats)
        stats.watch.check()
        world.sum_gradients(policy.trainable().values())
        update = epoch * updates + u - scale.skipped
        if _step(policy, optimizer, recipe, update, stats, scale, world) and ema is not None:
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
    scale: LossScale,
    world: World,
) -> bool:
    """Takes optimizer step number `update`; False when it overflowed, on every rank."""
    stats.learning_rate = learning_rate(recipe, update)
    for group in optimizer.param_groups:
        group["lr"] = stats.learning_rate
    parameters = policy.trainable()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    norm = float(whole(torch.nn.utils.get_total_norm(gradients))) / scale.value
    if world.any(not math.isfinite(norm)):
        if not scale.halve():
            raise gradient_error(parameters, update)
        stats.skipped += 1
        return False
    if norm == 0 and world.any(bool(stats.slope > 0)):
        raise vanished_error(update, policy.dtype, scale.value)
    # 1 / S in the clip's own factor
    factor = min(recipe.update.max_grad_norm / (norm + 1e-6), 1.0) / scale.value
    if factor != 1:
        torch._foreach_mul_(gradients, factor)
    optimizer.step()
    if norm > 0:
        scale.grow()
    stats.grad_norm = max(stats.grad_norm or 0.0, norm)
    stats.updates += 1
    return True
