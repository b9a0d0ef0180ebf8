"""One epoch's policy updates: replay the stochastic steps, weigh them by advantage, step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from flow_trainer.advantages import Advantages
from flow_trainer.config import Recipe
from flow_trainer.dppo import dppo_objective
from flow_trainer.dynamics import Transition
from flow_trainer.ema import Ema
from flow_trainer.finite import check_gradients, check_step
from flow_trainer.guard import guard_objective
from flow_trainer.models import Conditioning, Policy
from flow_trainer.objective import Objective, Replayed, clip_objective, kl_divergence
from flow_trainer.rollout import micro_batches, shares, transition
from flow_trainer.sharding import whole
from flow_trainer.trajectory import Trajectories
from flow_trainer.world import ALONE, World

OBJECTIVES: dict[str, Objective] = {
    "clip": clip_objective,
    "guard": guard_objective,
    "dppo": dppo_objective,
}


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


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Conditioning,
    advantages: Advantages,
    v_ref: dict[int, Tensor] | None = None,
    ready: Callable[[int], None] | None = None,
    world: World = ALONE,
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

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        replay = make_replay(recipe, samples, conditioning, rows, offsets)
        reference = None
        if v_ref is not None:
            at = samples.at(rows)
            reference = torch.stack([v_ref[j][at] for j in offsets], 1).flatten(0, 1)
        return _loss(policy, recipe, replay, values, reference, stats, first=update == 0)

    # no advantage, no gradient: failed, dropped or zero-spread groups
    steps = trained_steps(recipe, epoch)
    descend(policy, optimizer, ema, recipe, epoch, steps, values, loss, stats, ready, world)
    return stats


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


def trained_steps(recipe: Recipe, epoch: int) -> list[int]:
    """Offsets into the window that are trained in this epoch, ascending; the same for all samples."""
    offsets = range(len(recipe.window(epoch)))
    count = recipe.update.trained_steps
    if count is None or count >= len(offsets):
        return list(offsets)
    return sorted(random.Random(f"trained_steps/{recipe.seed}/{epoch}").sample(offsets, count))


def learning_rate(recipe: Recipe, update: int) -> float:
    """Linear warm-up, then linear decay to `final_learning_rate` at the last update."""
    u = recipe.update
    if update < u.warmup_updates:
        return u.learning_rate * (update + 1) / u.warmup_updates
    remaining = recipe.num_updates - 1 - u.warmup_updates
    progress = (update - u.warmup_updates) / remaining if remaining > 0 else 0.0
    return u.learning_rate * (1 + progress * (u.final_learning_rate - 1))


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
    conditioning: Conditioning,
    rows: range,
    offsets: list[int],
) -> Replay:
    """Rows are sample-major: sample b at offsets[0], at offsets[1], ..., then the next sample."""
    batch = samples.at(rows)
    device = samples.latents.device
    prompts = prompts_of(recipe, rows, device)
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


def prompts_of(recipe: Recipe, rows: range, device: torch.device) -> Tensor:
    """(len(rows),) int64: which of the epoch's prompts each row belongs to."""
    return torch.tensor([row // recipe.sampling.group_size for row in rows], device=device)


@torch.no_grad()
def reference_velocities(
    policy: Policy,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Conditioning,
    world: World = ALONE,
) -> dict[int, Tensor] | None:
    """The reference policy's velocity (B, C, h, w) at every trained step of `samples`, by offset;
    None without a KL term, or where samples are noised afresh. It needs no scores, so it runs while
    they are still on their way."""
    if recipe.update.beta == 0 or recipe.update.forward_process:
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


def _loss(
    policy: Policy,
    recipe: Recipe,
    replay: Replay,
    values: Tensor,
    v_ref: Tensor | None,
    stats: UpdateStats,
    *,
    first: bool,
) -> Tensor:
    """Summed loss of a replay. `values` are the advantages of all samples of the epoch, `v_ref` the
    reference's velocities at the replay's rows."""
    rows, offsets, x = replay.rows, replay.offsets, replay.x
    batch = slice(rows.start, rows.stop)
    advantage = values[batch].to(x.device, torch.float32).repeat_interleave(len(offsets))
    sigmas, steps = replay.sigmas, replay.steps
    v = policy.velocity(x, sigmas[steps], replay.conditioning)
    step = transition(recipe, sigmas, steps, x, v)
    replayed = compare(replay, step)
    objective = OBJECTIVES[recipe.update.objective]
    loss, diagnostics = objective(replayed, advantage, recipe.update.clip_range)
    if v_ref is not None:
        reference = transition(recipe, sigmas, steps, x, v_ref)
        kl = kl_divergence(recipe.update.kl, step, reference, v, v_ref, replayed.d)
        # none without an advantage, or a row's would depend on whether its micro-batch is skipped
        loss = loss + recipe.update.beta * torch.where(advantage != 0, kl, 0.0)
        diagnostics = {**diagnostics, "kl": kl.detach()}
    named = {"velocity": v, "log-probability": replayed.log_prob, "advantage": advantage}
    check_step({**named, "loss": loss}, rows, steps)
    stats.add({**diagnostics, "loss": loss.detach()}, len(loss))
    if first:
        error = float((replayed.log_prob.detach() - replay.old_log_prob).exp().sub(1).abs().max())
        stats.ratio_error = max(stats.ratio_error, error)
    return loss.sum()


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


def step_chunks(steps: list[int], size: int) -> Iterator[list[int]]:
    """Window offsets in groups of at most `size`: one transformer forward each."""
    for chunk in micro_batches(len(steps), size):
        yield [steps[i] for i in chunk]
