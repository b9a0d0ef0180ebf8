"""One epoch's updates on the forward process: noise the finished samples again, match velocities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.noise import forward_noise, forward_steps
from flow_trainer.algorithm.objectives.awm import awm_objective
from flow_trainer.algorithm.objectives.nft import Noised, nft_objective
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.ahead import Ahead
from flow_trainer.loop.rollout import prompts_of
from flow_trainer.loop.updates.descend import UpdateStats, descend
from flow_trainer.loop.updates.loss_scale import LossScale
from flow_trainer.loop.updates.replay import step_chunks
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe

Objective = Callable[[Recipe, Noised, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(recipe, noised samples, advantages (B,)) to (loss (B,), diagnostics)."""

OBJECTIVES: dict[str, Objective] = {
    "nft": lambda r, step, a: nft_objective(
        step, a, strength=r.forward.strength, advantage_clip=r.advantage.clip
    ),
    "awm": lambda r, step, a: awm_objective(
        step, a, weighting=r.forward.weighting, clip_range=r.update.clip_range
    ),
}


def update_forward(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    old: Ema,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    advantages: Advantages,
    ready: Callable[[int], None] | None = None,
    world: World = ALONE,
    scale: LossScale | None = None,
) -> UpdateStats:
    """`updates_per_epoch` optimizer steps, then `old`, the policy that samples, follows those taken.

    Every sample is noised to `recipe.forward_steps` noise levels of the sampling schedule, other
    ones for each sample. Samples without a score are left out; those of a group whose rewards are
    all equal are not: they hold the policy near `old`. `ready` as in `update_policy`. Raises
    NonFiniteError.
    """
    stats = UpdateStats()
    values = advantages.values.flatten()
    used = advantages.used.flatten()

    steps = list(range(recipe.forward_steps))
    chunks = [tuple(chunk) for chunk in step_chunks(steps, recipe.update.steps_per_forward)]

    def draw(key: tuple[range, tuple[int, ...]]) -> tuple[Tensor]:
        rows, offsets = key
        keys = samples.keys[samples.at(rows)]
        noise = forward_noise(recipe.seed, epoch, keys, policy.latent_shape, offsets)
        return (noise.flatten(0, 1),)

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        batch = slice(rows.start, rows.stop)
        left = chunks[chunks.index(tuple(offsets)) + 1 :]
        (noise,) = ahead.get((rows, tuple(offsets)), [(rows, chunk) for chunk in left])
        step, v_ref = _noised(
            policy, old, recipe, epoch, samples, conditioning, rows, offsets, noise
        )
        repeat = len(offsets)
        advantage = values[batch].to(step.v).repeat_interleave(repeat)
        objective, diagnostics = OBJECTIVES[recipe.update.objective](recipe, step, advantage)
        if v_ref is not None:
            kl = _mean_square(step.v, v_ref)
            objective = objective + recipe.update.beta * kl
            diagnostics["kl"] = kl.detach()
        if recipe.forward.old_beta > 0:
            objective = objective + recipe.forward.old_beta * _mean_square(step.v, step.v_old)
        kept = used[batch].to(objective.device).repeat_interleave(repeat)
        named = {"velocity": step.v, "old velocity": step.v_old, "loss": objective}
        stats.watch.see(named, rows, torch.arange(repeat).repeat(len(rows)))
        stats.see_velocity(step.v)
        stats.add({**diagnostics, "loss": objective.detach()}, len(objective))
        return torch.where(kept, objective, 0.0).sum()

    with Ahead(draw, policy.device) as ahead:
        descend(
            policy, optimizer, ema, recipe, epoch, steps, used, loss, stats, ready, world, scale
        )
    if stats.updates:
        old.update(stats.updates)
    return stats


def _noised(
    policy: Policy,
    old: Ema,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    rows: range,
    offsets: list[int],
    noise: Tensor,
) -> tuple[Noised, Tensor | None]:
    """Rows at their noise levels number `offsets`, sample-major, and the reference's velocity there
    when there is a KL term."""
    keys = samples.keys[samples.at(rows)]
    device, repeat = samples.x_0.device, len(offsets)
    x_0 = samples.x_0[samples.at(rows)].repeat_interleave(repeat, 0)
    steps = forward_steps(recipe.seed, epoch, keys, recipe.sampling.num_steps)[:, offsets]
    sigma = samples.sigmas[steps.flatten().to(device)]
    column = sigma.view(-1, *[1] * (x_0.ndim - 1))
    x_t = (1 - column) * x_0 + column * noise
    texts = conditioning[prompts_of(rows, recipe.sampling.group_size)].repeat(repeat)
    with torch.no_grad(), old.swapped():
        v_old = policy.velocity(x_t, sigma, texts)
    v_ref = None
    if recipe.update.beta > 0:
        with torch.no_grad(), policy.reference():
            v_ref = policy.velocity(x_t, sigma, texts)
    v = policy.velocity(x_t, sigma, texts)
    return Noised(x_0, noise, x_t, sigma, v, v_old), v_ref


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).flatten(1).mean(1)
