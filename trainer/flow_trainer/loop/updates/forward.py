"""One epoch's updates on the forward process: noise the finished samples again, match velocities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.noise import forward_noise, forward_steps, stratified_times
from flow_trainer.algorithm.objectives import crd
from flow_trainer.algorithm.objectives.awm import awm_log_prob, awm_objective
from flow_trainer.algorithm.objectives.crd import crd_objective
from flow_trainer.algorithm.objectives.dgpo import dgpo_objective
from flow_trainer.algorithm.objectives.epg import elbo, epg_objective, likelihood_kl
from flow_trainer.algorithm.objectives.matching import Noised, mean_square
from flow_trainer.algorithm.objectives.nft import nft_objective
from flow_trainer.algorithm.objectives.ram import ram_objective
from flow_trainer.algorithm.schedule import sigma_at
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.loop.ahead import Ahead
from flow_trainer.loop.rollout import prompts_of
from flow_trainer.loop.updates.descend import Beside, UpdateStats, descend
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
    "epg": lambda r, step, a: epg_objective(
        step,
        a,
        gradient=r.forward.gradient,
        likelihood=r.forward.likelihood,
        ratio=r.forward.ratio,
        clip_range=r.update.clip_range,
        guidance=r.model.classifier_free,
    ),
    "ram": lambda r, step, a: ram_objective(step, a, strength=r.forward.strength),
    "dgpo": lambda r, step, a: dgpo_objective(
        step,
        a,
        strength=r.forward.strength,
        clip_range=r.update.clip_range,
        group_size=r.sampling.group_size,
    ),
    "crd": lambda r, step, a: crd_objective(
        step, a, strength=r.forward.strength, advantage_clip=r.advantage.clip
    ),
}

LIKELIHOODS: dict[str, Callable[[Recipe, Noised], Tensor]] = {
    "awm": lambda r, step: awm_log_prob(step.v, step.target, step.sigma, r.forward.weighting),
    "epg": lambda r, step: elbo(step, step.v, r.forward.likelihood, r.model.classifier_free),
    "dgpo": lambda r, step: -mean_square(step.v, step.target),
}
"""(recipe, noised samples) to the log-likelihood (B,) whose ratio to the old policy's is clipped."""


def clips_likelihoods(recipe: Recipe) -> bool:
    """Whether the recipe's objective on finished samples clips a ratio of LIKELIHOODS."""
    objective = recipe.update.objective
    return objective in LIKELIHOODS and (objective != "epg" or recipe.forward.gradient == "clip")


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
    beside: Beside | None = None,
) -> UpdateStats:
    """`updates_per_epoch` optimizer steps, then `old`, the policy that samples, follows those taken.

    Every sample is noised to `recipe.forward_steps` noise levels, which [forward] chooses. Samples
    without a score are left out; those of a group whose rewards are all equal are not: they hold the
    policy near `old`. `ready` as in `update_policy`. Raises NonFiniteError.
    """
    stats = UpdateStats()
    values = advantages.values.flatten()
    used = advantages.used.flatten()

    steps = list(range(recipe.forward_steps))
    chunks = [tuple(chunk) for chunk in step_chunks(steps, recipe.update.steps_per_forward)]

    def draw(key: tuple[range, tuple[int, ...]]) -> tuple[Tensor]:
        return (level_noise(policy, recipe, epoch, samples, *key),)

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        batch = slice(rows.start, rows.stop)
        left = chunks[chunks.index(tuple(offsets)) + 1 :]
        (noise,) = ahead.get((rows, tuple(offsets)), [(rows, chunk) for chunk in left])
        repeat = len(offsets)
        kept = used[batch].to(samples.x_0.device).repeat_interleave(repeat)
        step = noised(policy, old, recipe, epoch, samples, conditioning, rows, offsets, noise, kept)
        advantage = values[batch].to(step.v).repeat_interleave(repeat)
        objective, diagnostics = OBJECTIVES[recipe.update.objective](recipe, step, advantage)
        if recipe.update.beta > 0:
            kl = _kl(recipe, step)
            objective = objective + _beta(recipe, advantage) * kl
            diagnostics["kl"] = kl.detach()
        if recipe.forward.old_beta > 0:
            objective = objective + recipe.forward.old_beta * mean_square(step.v, step.v_old)
        named = {"velocity": step.v, "old velocity": step.v_old, "loss": objective}
        stats.watch.see(named, rows, torch.arange(repeat).repeat(len(rows)))
        stats.see_velocity(step.v)
        stats.add({**diagnostics, "loss": objective.detach()}, len(objective))
        return torch.where(kept, objective, 0.0).sum()

    with Ahead(draw, policy.device) as ahead:
        descend(
            policy,
            optimizer,
            ema,
            recipe,
            epoch,
            steps,
            used,
            loss,
            stats,
            ready,
            world,
            scale,
            beside,
        )
    if stats.updates:
        old.update(stats.updates)
    return stats


def _kl(recipe: Recipe, step: Noised) -> Tensor:
    """(B,): distance from the reference in the form of update.kl."""
    if recipe.update.kl == "velocity":
        return mean_square(step.v, step.reference)
    likelihood = recipe.forward.likelihood
    guided = recipe.forward.reference_guidance
    e = elbo(step, step.v, likelihood, recipe.model.classifier_free)
    e_ref = elbo(step, step.reference, likelihood, guided or recipe.model.classifier_free)
    return likelihood_kl(recipe.update.kl, e, e_ref).float()


def _beta(recipe: Recipe, advantages: Tensor) -> Tensor | float:
    """Weight of the KL term, for crd one per row."""
    if recipe.update.objective == "crd":
        return crd.kl_weight(advantages, recipe.advantage.clip, recipe.update.beta)
    return recipe.update.beta


def level_noise(
    policy: Policy,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    rows: range,
    offsets: Sequence[int],
) -> Tensor:
    """(rows x offsets, C, h, w), sample-major, on the CPU: what `noised` takes."""
    keys = samples.keys[samples.at(rows)]
    pairs = recipe.forward.share == "pairs"
    noise = forward_noise(
        recipe.seed, epoch, keys, policy.latent_shape, list(offsets), shared=pairs
    )
    return noise.flatten(0, 1)


def noised(
    policy: Policy,
    old: Ema,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    rows: range,
    offsets: list[int],
    noise: Tensor,
    used: Tensor,
) -> Noised:
    """Rows at their noise levels number `offsets`, sample-major, with this noise."""
    keys = samples.keys[samples.at(rows)]
    device, repeat = samples.x_0.device, len(offsets)
    x_0 = samples.x_0[samples.at(rows)].repeat_interleave(repeat, 0)
    sigma = _levels(recipe, epoch, samples, keys)[:, offsets].flatten().to(device)
    column = sigma.view(-1, *[1] * (x_0.ndim - 1))
    x_t = (1 - column) * x_0 + column * noise
    prompts = prompts_of(rows, recipe.sampling.group_size)
    texts = conditioning[prompts].repeat(repeat)
    with torch.no_grad(), old.swapped():
        v_old = policy.velocity(x_t, sigma, texts)
    v_ref = None
    if recipe.update.needs_reference:
        with torch.no_grad(), policy.reference(recipe.forward.reference_guidance):
            v_ref = policy.velocity(x_t, sigma, texts)
    v = policy.velocity(x_t, sigma, texts)
    group = [(p - prompts[0]) * repeat + level for p in prompts for level in range(repeat)]
    return Noised(x_0, noise, x_t, sigma, v, v_old, v_ref, torch.tensor(group, device=device), used)


def _levels(
    recipe: Recipe, epoch: int, samples: Trajectories, keys: list[tuple[int, int]]
) -> Tensor:
    """(B, forward_steps or more): the noise levels of samples with these keys, in the order in which
    they are trained."""
    shared, levels = recipe.forward.share != "none", recipe.levels
    if recipe.forward.times == "stratified":
        times = stratified_times(recipe.seed, epoch, keys, recipe.forward_steps, shared=shared)
        return sigma_at(samples.sigmas.cpu(), levels.start + times * len(levels))
    order = levels.start + forward_steps(recipe.seed, epoch, keys, len(levels), shared=shared)
    return samples.sigmas.cpu()[order]
