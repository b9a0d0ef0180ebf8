"""One epoch's updates on the sampled trajectories: replay the stochastic steps, weigh them by
advantage, step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.objectives.clip import Objective, clip_objective
from flow_trainer.algorithm.objectives.dppo import dppo_objective
from flow_trainer.algorithm.objectives.guard import guard_objective
from flow_trainer.algorithm.objectives.kl import kl_divergence
from flow_trainer.algorithm.step_weights import flash_weights, noise_weights, step_stds
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.rollout import transition
from flow_trainer.loop.updates.descend import Beside, UpdateStats, descend
from flow_trainer.loop.updates.loss_scale import LossScale
from flow_trainer.loop.updates.replay import Replay, compare, make_replay, trained_steps
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe

OBJECTIVES: dict[str, Objective] = {
    "clip": clip_objective,
    "guard": guard_objective,
    "dppo": dppo_objective,
}


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    advantages: Advantages,
    v_ref: dict[int, Tensor] | None = None,
    ready: Callable[[int], None] | None = None,
    world: World = ALONE,
    scale: LossScale | None = None,
    beside: Beside | None = None,
) -> UpdateStats:
    """`updates_per_epoch` optimizer steps; the first is on-policy (ratio 1), later ones are not.

    Update u takes the u-th share of the epoch's groups, in sampling order: micro-batches then have
    the composition they had in the rollout, which is what keeps the ratio at 1 in low precision.
    The loss is a mean over the planned samples, so dropped ones do not rescale the gradient; those
    without an advantage have no KL term either, as in flow_grpo.
    `conditioning` has one row per prompt; `v_ref` comes from `reference_velocities` when there is a
    KL term. `ready` (u), called before update u, may still fill in the advantages of its share.
    Raises NonFiniteError.
    """
    stats = UpdateStats()
    values = advantages.values.flatten()
    weights = _step_weights(recipe, samples.sigmas)

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        replay = make_replay(recipe, samples, conditioning, rows, offsets)
        reference = None
        if v_ref is not None:
            at = samples.at(rows)
            reference = torch.stack([v_ref[j][at] for j in offsets], 1).flatten(0, 1)
        return _loss(policy, recipe, replay, values, reference, weights, stats, first=update == 0)

    # no advantage, no gradient: failed, dropped or zero-spread groups
    steps = trained_steps(recipe, epoch)
    descend(
        policy,
        optimizer,
        ema,
        recipe,
        epoch,
        steps,
        values,
        loss,
        stats,
        ready,
        world,
        scale,
        beside,
    )
    return stats


def _step_weights(recipe: Recipe, sigmas: Tensor) -> Tensor | None:
    """(T,) by update.step_weight; None for 1 everywhere."""
    kind = recipe.update.step_weight
    if kind == "none":
        return None
    stds = step_stds(recipe.sampling.dynamics, sigmas, recipe.sampling.noise_level)
    if kind == "noise":
        return noise_weights(stds)
    return flash_weights(stds, sigmas, recipe.window_pool)


def _loss(
    policy: Policy,
    recipe: Recipe,
    replay: Replay,
    values: Tensor,
    v_ref: Tensor | None,
    weights: Tensor | None,
    stats: UpdateStats,
    *,
    first: bool,
) -> Tensor:
    """Summed loss of a replay. `values` are the advantages of all samples of the epoch, `v_ref` the
    reference's velocities at the replay's rows, `weights` (T,) the factors of the steps."""
    rows, offsets, x = replay.rows, replay.offsets, replay.x
    batch = slice(rows.start, rows.stop)
    advantage = values[batch].to(x.device, torch.float32).repeat_interleave(len(offsets))
    sigmas, steps = replay.sigmas, replay.steps
    v = policy.velocity(x, sigmas[steps], replay.conditioning)
    step = transition(recipe, sigmas, steps, x, v)
    replayed = compare(replay, step)
    objective = OBJECTIVES[recipe.update.objective]
    loss, diagnostics = objective(replayed, advantage, recipe.update.clip_range)
    if weights is not None:
        loss = loss * weights[steps]
    if v_ref is not None:
        reference = transition(recipe, sigmas, steps, x, v_ref)
        kl = kl_divergence(recipe.update.kl, step, reference, v, v_ref, replayed.d)
        # none without an advantage, or a row's would depend on whether its micro-batch is skipped
        loss = loss + recipe.update.beta * torch.where(advantage != 0, kl, 0.0)
        diagnostics = {**diagnostics, "kl": kl.detach()}
    named = {"velocity": v, "log-probability": replayed.log_prob, "advantage": advantage}
    stats.watch.see({**named, "loss": loss}, rows, steps)
    stats.see_velocity(v)
    stats.add({**diagnostics, "loss": loss.detach()}, len(loss))
    if first:
        stats.see_log_ratio(replayed.log_prob - replay.old_log_prob)
    return loss.sum()
