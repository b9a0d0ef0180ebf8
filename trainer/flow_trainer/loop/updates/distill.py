"""One epoch's updates towards teachers: the sampled steps again, under the policy and under the teacher
of each prompt's source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.objectives.opd import opd_objective
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.rollout import transition
from flow_trainer.loop.updates.descend import Beside, UpdateStats, descend
from flow_trainer.loop.updates.loss_scale import LossScale
from flow_trainer.loop.updates.replay import Replay, make_replay, trained_steps
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe


def update_distill(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    sources: Sequence[str],
    ready: Callable[[int], None] | None = None,
    world: World = ALONE,
    scale: LossScale | None = None,
    beside: Beside | None = None,
) -> UpdateStats:
    """`updates_per_epoch` optimizer steps on all samples, whatever their scores, which only watch.
    `sources` names the source of each prompt, "" where there are none; the rest is as in
    `update_policy`. Raises NonFiniteError."""
    stats = UpdateStats()
    group = recipe.sampling.group_size

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        replay = make_replay(recipe, samples, conditioning, rows, offsets)
        sigmas, steps, x = replay.sigmas, replay.steps, replay.x
        named = [sources[row // group] for row in rows for _ in offsets]
        v_teacher = _teachers(policy, recipe, replay, named)
        v = policy.velocity(x, sigmas[steps], replay.conditioning)
        student = transition(recipe, sigmas, steps, x, v)
        teacher = transition(recipe, sigmas, steps, x, v_teacher)
        loss, diagnostics = opd_objective(student, teacher)
        stats.watch.see({"velocity": v, "teacher's velocity": v_teacher, "loss": loss}, rows, steps)
        stats.see_velocity(v)
        stats.add({**diagnostics, "loss": loss.detach()}, len(loss))
        return loss.sum()

    wanted = torch.ones(recipe.images_per_epoch, dtype=torch.bool)
    steps = trained_steps(recipe, epoch)
    descend(
        policy,
        optimizer,
        ema,
        recipe,
        epoch,
        steps,
        wanted,
        loss,
        stats,
        ready,
        world,
        scale,
        beside,
    )
    return stats


@torch.no_grad()
def _teachers(policy: Policy, recipe: Recipe, replay: Replay, sources: list[str]) -> Tensor:
    """The velocity of each row under the teacher of its source (B)."""
    v = torch.empty_like(replay.x, dtype=torch.float32)
    sigma = replay.sigmas[replay.steps]
    for name in dict.fromkeys(sources):
        rows = [i for i, source in enumerate(sources) if source == name]
        with policy.teacher(name, recipe.teachers[name].guidance):
            v[rows] = policy.velocity(replay.x[rows], sigma[rows], replay.conditioning[rows])
    return v
