"""Recorded steps through the transformer again: which, in what order, and what of them the objectives
compare."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import Transition
from flow_trainer.algorithm.objectives.clip import Replayed
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.rollout import micro_batches, prompts_of, shares
from flow_trainer.models.conditioning import Conditioning, Rows
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe


def trained_steps(recipe: Recipe, epoch: int) -> list[int]:
    """Offsets into the window that are trained in this epoch, ascending; the same for all samples."""
    offsets = range(len(recipe.window(epoch)))
    count = recipe.update.trained_steps
    if count is None or count >= len(offsets):
        return list(offsets)
    return sorted(random.Random(f"trained_steps/{recipe.seed}/{epoch}").sample(offsets, count))


def step_chunks(steps: list[int], size: int) -> Iterator[list[int]]:
    """Window offsets in groups of at most `size`: one transformer forward each."""
    for chunk in micro_batches(len(steps), size):
        yield [steps[i] for i in chunk]


@dataclass(frozen=True, slots=True)
class Replay:
    """Some samples at some of their stochastic steps: one transformer forward of B rows."""

    rows: range
    offsets: list[int]
    """Steps, counted from the window's start."""
    x: Tensor
    x_next: Tensor
    steps: Tensor
    """(B,) indices into the schedule `sigmas`."""
    sigmas: Tensor
    conditioning: Conditioning
    old_log_prob: Tensor
    old_mean: Tensor | None


def make_replay(
    recipe: Recipe,
    samples: Trajectories,
    conditioning: Rows,
    rows: range,
    offsets: list[int],
) -> Replay:
    """Rows are sample-major: sample b at offsets[0], at offsets[1], ..., then the next sample."""
    batch = samples.at(rows)
    device = samples.latents.device
    prompts = prompts_of(rows, recipe.sampling.group_size)
    steps = torch.tensor([samples.window[j] for j in offsets], device=device)
    return Replay(
        rows,
        offsets,
        x=samples.latents[batch, offsets].flatten(0, 1),
        x_next=samples.latents[batch, [j + 1 for j in offsets]].flatten(0, 1),
        steps=steps.repeat(len(rows)),
        sigmas=samples.sigmas,
        conditioning=conditioning[prompts].repeat(len(offsets)),
        old_log_prob=samples.log_probs[batch, offsets].flatten(),
        old_mean=None if samples.means is None else samples.means[batch, offsets].flatten(0, 1),
    )


@torch.no_grad()
def reference_velocities(
    policy: Policy,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    world: World = ALONE,
) -> dict[int, Tensor] | None:
    """The reference policy's velocity (B, C, h, w) at every trained step of `samples`, by offset;
    None without a KL term on trajectories. It needs no scores, so it runs while
    they are still on their way."""
    if recipe.update.beta == 0 or recipe.update.trains_on != "trajectories":
        return None
    found = {j: torch.empty_like(samples.latents[:, 0]) for j in trained_steps(recipe, epoch)}
    batches = shares(recipe, recipe.images_per_epoch)
    with policy.reference():
        for turn in chain.from_iterable(world.turns(share) for share in batches):
            if not turn.rows:
                continue
            for chunk in step_chunks(list(found), recipe.update.steps_per_forward):
                r = make_replay(recipe, samples, conditioning, turn.rows, chunk)
                v = policy.velocity(r.x, r.sigmas[r.steps], r.conditioning)
                for k, j in enumerate(chunk):
                    found[j][samples.at(turn.rows)] = v[k :: len(chunk)]
    return found


def compare(replay: Replay, step: Transition) -> Replayed:
    """The recorded steps under the current policy's transitions."""
    mean_square = None
    if replay.old_mean is not None:
        mean_square = ((step.mean - replay.old_mean) ** 2).flatten(1).mean(1)
    return Replayed(
        step.log_prob(replay.x_next),
        replay.old_log_prob,
        std=step.std.flatten(),
        d=replay.sigmas[replay.steps] - replay.sigmas[replay.steps + 1],
        mean_square=mean_square,
    )
