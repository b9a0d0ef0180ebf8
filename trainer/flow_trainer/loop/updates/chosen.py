"""One epoch's updates on chosen samples: those of a group that its rewards single out, noised again and
trained on with weights. Online SFT, reward-weighted regression and Flow-DPO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.noise import forward_noise, forward_steps
from flow_trainer.algorithm.objectives.dpo import best_and_worst, dpo_objective
from flow_trainer.algorithm.objectives.matching import mean_square
from flow_trainer.algorithm.objectives.orw import reward_weights
from flow_trainer.algorithm.objectives.sft import best_of_group, sft_objective
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.ahead import Ahead
from flow_trainer.loop.updates.descend import Beside, UpdateStats, descend
from flow_trainer.loop.updates.loss_scale import LossScale
from flow_trainer.loop.updates.replay import step_chunks
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Chosen:
    """B chosen samples, noised again: velocities (B, ...) float32. Unlike `matching.Noised` without the old
    policy's, which these objectives do not ask."""

    v: Tensor
    """Of the policy; carries the gradient."""
    v_ref: Tensor | None
    """Of the reference, where it is needed."""
    target: Tensor
    """noise - x_0."""
    pairs: Tensor
    """(B,) int64 from 0: rows of one prompt at one noise level have one number."""


WEIGHTS: dict[str, Callable[[Recipe, Tensor, Tensor], Tensor]] = {
    "sft": lambda r, a, used: best_of_group(a, used),
    "orw": lambda r, a, used: reward_weights(a, used, temperature=r.forward.temperature),
    "dpo": lambda r, a, used: best_and_worst(a, used),
}
"""(recipe, advantages (P, G), used (P, G)) to every sample's weight (P, G); 0: it is not trained on."""


def _regress(recipe: Recipe, step: Chosen, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return sft_objective(step.v, step.target, weights)


def _prefer(recipe: Recipe, step: Chosen, signs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    assert step.v_ref is not None
    beta = recipe.forward.preference
    return dpo_objective(step.v, step.v_ref, step.target, signs, step.pairs, beta=beta)


OBJECTIVES: dict[str, Callable[[Recipe, Chosen, Tensor], tuple[Tensor, dict[str, Tensor]]]] = {
    "sft": _regress,
    "orw": _regress,
    "dpo": _prefer,
}
"""(recipe, noised samples, weights (B,)) to (loss (B,), diagnostics)."""


def update_chosen(
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
    beside: Beside | None = None,
) -> UpdateStats:
    """`updates_per_epoch` optimizer steps, then `old`, the policy that samples, follows those taken.

    Samples that are not chosen take no forward. The loss is a mean over the planned samples that a
    group has chosen, so dropped groups do not rescale the gradient. `ready` as in `update_policy`.
    Raises NonFiniteError.
    """
    stats = UpdateStats()
    weights = torch.zeros_like(advantages.values)
    group_size = recipe.sampling.group_size
    groups = recipe.share // group_size
    # descend divides by all planned samples of a share
    factor = group_size / recipe.update.chosen(group_size)

    def choose(update: int) -> None:
        if ready is not None:
            ready(update)
        share = slice(update * groups, (update + 1) * groups)
        values, used = advantages.values[share], advantages.used[share]
        weights[share] = WEIGHTS[recipe.update.objective](recipe, values, used)

    steps = list(range(recipe.forward_steps))
    chunks = [tuple(chunk) for chunk in step_chunks(steps, recipe.update.steps_per_forward)]

    def draw(key: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[Tensor]:
        keys = _keys(recipe, samples, key[0])
        noise = forward_noise(recipe.seed, epoch, keys, policy.latent_shape, key[1])
        return (noise.flatten(0, 1),)

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        # a rank that only keeps step with the others may have none: it takes one, of weight 0
        chosen = [row for row in rows if weights.view(-1)[row] != 0] or [rows.start]
        left = chunks[chunks.index(tuple(offsets)) + 1 :]
        following = [(tuple(chosen), chunk) for chunk in left]
        (noise,) = ahead.get((tuple(chosen), tuple(offsets)), following)
        step = _noised(policy, recipe, epoch, samples, conditioning, chosen, offsets, noise)
        weight = weights.view(-1)[chosen].to(step.v).repeat_interleave(len(offsets))
        objective, diagnostics = OBJECTIVES[recipe.update.objective](recipe, step, weight)
        if recipe.update.beta > 0:
            assert step.v_ref is not None
            kl = mean_square(step.v, step.v_ref)
            objective = objective + recipe.update.beta * kl
            diagnostics["kl"] = kl.detach()
        named = {"velocity": step.v, "loss": objective}
        stats.watch.see(named, chosen, torch.arange(len(offsets)).repeat(len(chosen)))
        stats.see_velocity(step.v)
        stats.add({**diagnostics, "loss": objective.detach()}, len(objective))
        return factor * objective.sum()

    wanted = weights.view(-1)
    whose = (policy, optimizer, ema, recipe, epoch)
    with Ahead(draw, policy.device) as ahead:
        descend(*whose, steps, wanted, loss, stats, choose, world, scale, beside)
    if stats.updates:
        old.update(stats.updates)
    return stats


def _noised(
    policy: Policy,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    rows: list[int],
    offsets: list[int],
    noise: Tensor,
) -> Chosen:
    """Rows at their noise levels number `offsets`, sample-major, with this noise."""
    repeat, device = len(offsets), samples.x_0.device
    keys = _keys(recipe, samples, rows)
    x_0 = samples.x_0[_places(samples, rows)].repeat_interleave(repeat, 0)
    steps = forward_steps(recipe.seed, epoch, keys, recipe.sampling.num_steps)[:, offsets]
    sigma = samples.sigmas[steps.flatten().to(device)]
    column = sigma.view(-1, *[1] * (x_0.ndim - 1))
    x_t = (1 - column) * x_0 + column * noise
    prompts = [row // recipe.sampling.group_size for row in rows]
    texts = conditioning[prompts].repeat(repeat)
    v_ref = None
    if recipe.update.needs_reference:
        with torch.no_grad(), policy.reference():
            v_ref = policy.velocity(x_t, sigma, texts)
    v = policy.velocity(x_t, sigma, texts)
    pairs = [
        (prompt - prompts[0]) * repeat + level for prompt in prompts for level in range(repeat)
    ]
    return Chosen(v, v_ref, noise - x_0, torch.tensor(pairs, device=device))


def _places(samples: Trajectories, rows: Sequence[int]) -> list[int]:
    return [samples.at(range(row, row + 1)).start for row in rows]


def _keys(recipe: Recipe, samples: Trajectories, rows: Sequence[int]) -> list[tuple[int, int]]:
    """What the noise of these rows depends on."""
    keys = [samples.keys[place] for place in _places(samples, rows)]
    if recipe.update.whole_groups:
        return [(prompt, 0) for prompt, _ in keys]  # a pair has one noise and one order of levels
    return keys
