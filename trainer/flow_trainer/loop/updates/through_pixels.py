"""One epoch's update up the rewards' gradients: from pixels back through the decoder and the last steps.

The chain is cut twice, at the pixels, whose gradients the services sent with the scores, and at the
latents, so that neither the decoder's activations nor the reward's are there beside the transformer's.
Both cuts are exact because the samples were drawn by the weights that are trained: one update an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import euler
from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.objectives.matching import mean_square
from flow_trainer.algorithm.objectives.refl import refl_objective, slopes
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.errors import ConfigError, ScoringError
from flow_trainer.loop.rollout import prompts_of
from flow_trainer.loop.scoring import Job
from flow_trainer.loop.updates.descend import Beside, UpdateStats, descend
from flow_trainer.loop.updates.loss_scale import LossScale
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe
from flow_trainer.record.scores import Scores
from reward_api import RewardMetadata
from reward_api.wire.gradients import unpack_gradient


@dataclass(frozen=True, slots=True)
class PixelGradients:
    """What the rewards say of an epoch's N samples and of the way up."""

    values: Tensor
    """(N,) float32: the weighted rewards R; 0 where not wanted."""
    wanted: Tensor
    """(N,) bool: has a score and a gradient that is not 0 for certain."""
    of: Callable[[range], Tensor]
    """dR / d pixel (b, H, W, 3) float32 of a micro-batch of this rank, pixels in 0..1; 0 where not
    wanted."""


def check_gradients(recipe: Recipe, metadata: Mapping[str, RewardMetadata]) -> None:
    """Raises ConfigError when the recipe follows gradients that one of its rewards does not offer."""
    if recipe.update.trains_on != "gradients":
        return
    for name in recipe.trained:
        if not metadata[name].has_gradient:
            raise ConfigError(no_gradient(name, metadata[name], recipe))


def no_gradient(name: str, meta: RewardMetadata, recipe: Recipe) -> str:
    return (
        f"rewards.{name} is served by {meta.name} {meta.version}, which offers no gradient, and "
        f"update.objective = {recipe.update.objective} follows it: use one that does (pickscore, "
        f"clipscore, hpsv2, aesthetic, imagereward), or set rewards.{name}.monitor = true"
    )


def pixel_gradients(
    recipe: Recipe, scores: Scores, sources: Sequence[str], jobs: Sequence[Job]
) -> PixelGradients:
    """Of an epoch's samples; `sources` names the source of each prompt, `jobs` are this rank's
    micro-batches. A sample without a score from each of its rewards is left out."""
    terms, group = recipe.source_rewards, recipe.sampling.group_size
    named = np.repeat(sources, group)
    weights = {name: np.zeros(len(scores.values)) for name in scores.rewards}
    for source, own in terms.items():
        rows = scores.valid & (named == source)
        found = slopes({n: scores.rewards[n].values for n in own if n in weights}, own, rows)
        for name, slope in found.items():
            weights[name] += slope
    wanted = np.any([slope != 0 for slope in weights.values()], axis=0)
    values = np.where(wanted, scores.values, 0.0)
    by_row = {job.rows.start: job for job in jobs}
    return PixelGradients(
        torch.from_numpy(values).float(),
        torch.from_numpy(wanted),
        lambda rows: torch.from_numpy(_summed(by_row[rows.start], weights)),
    )


def _summed(job: Job, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """(b, H, W, 3) float32: the sum of the rewards' gradients, each times its slope (N,)."""
    total = np.zeros(job.images.shape, np.float32)
    for source, result in job.results.items():
        places = [place for place, name in enumerate(job.sources) if name == source]
        for name, batch in result.result().rewards.items():
            for place, gradient in zip(places, batch.gradients, strict=True):
                slope = weights[name][job.rows[place]]
                if slope == 0:
                    continue
                if gradient is None:
                    raise ScoringError(
                        f"reward {name} scored sample {job.rows[place]} without the gradient that was "
                        "asked for: update the service"
                    )
                total[place] += np.float32(slope) * unpack_gradient(gradient)
    return total


def update_through_pixels(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    recipe: Recipe,
    epoch: int,
    samples: Trajectories,
    conditioning: Rows,
    gradients: Callable[[], PixelGradients],
    ready: Callable[[int], None] | None = None,
    world: World = ALONE,
    scale: LossScale | None = None,
    beside: Beside | None = None,
) -> UpdateStats:
    """The epoch's one optimizer step, on -R of the samples that were scored, in the mean over the planned
    ones. `gradients` is called once `ready` (0), as in `update_policy`, has returned. The KL term is
    mean((v - v_ref)^2) over the window's steps. Raises NonFiniteError."""
    stats = UpdateStats()
    wanted = torch.zeros(recipe.images_per_epoch, dtype=torch.bool)
    found: list[PixelGradients] = []

    def receive(update: int) -> None:
        if ready is not None:
            ready(update)
        found.append(gradients())
        wanted.copy_(found[0].wanted)

    def loss(rows: range, offsets: list[int], update: int, stats: UpdateStats) -> Tensor:
        place, batch = samples.at(rows), slice(rows.start, rows.stop)
        x_0 = samples.x_0[place]
        pulled = torch.zeros_like(x_0)
        if wanted[batch].any():
            pixels = found[0].of(rows).to(x_0.device)
            pulled = policy.pull_back(x_0, pixels, recipe.update.gradient_batch)
        x, velocities, kl = _last_steps(policy, recipe, samples, conditioning, rows)
        values = found[0].values[batch].to(x)
        objective, diagnostics = refl_objective(x, pulled, values)
        if kl is not None:
            # none without a score, or a row's would depend on whether its micro-batch is skipped
            objective = objective + recipe.update.beta * torch.where(wanted[batch].to(x) > 0, kl, 0)
            diagnostics["kl"] = kl.detach()
        last = torch.full((len(rows),), samples.window[-1])
        stats.watch.see({"latent gradient": pulled, "loss": objective}, rows, last)
        for step, v in velocities.items():
            stats.watch.see({"velocity": v}, rows, torch.full((len(rows),), step))
            stats.see_velocity(v)
        stats.add({**diagnostics, "loss": objective.detach()}, len(objective))
        return objective.sum()

    whose = (policy, optimizer, ema, recipe, epoch)
    descend(*whose, [0], wanted, loss, stats, receive, world, scale, beside)
    return stats


def _last_steps(
    policy: Policy, recipe: Recipe, samples: Trajectories, conditioning: Rows, rows: range
) -> tuple[Tensor, dict[int, Tensor], Tensor | None]:
    """The window's steps again, with gradient: x_0 (B, C, h, w), the velocities by step, and with a KL term
    its value (B,)."""
    x = samples.latents[samples.at(rows), 0]
    texts = conditioning[prompts_of(rows, recipe.sampling.group_size)]
    velocities: dict[int, Tensor] = {}
    squares = []
    for i in samples.window:
        sigma = samples.sigmas[i].repeat(len(rows))
        v_ref = None
        if recipe.update.beta > 0:
            with torch.no_grad(), policy.reference():
                v_ref = policy.velocity(x.detach(), sigma, texts)
        v = policy.velocity(x, sigma, texts)
        if v_ref is not None:
            squares.append(mean_square(v, v_ref))
        velocities[i] = v
        x = euler(x, v, samples.sigmas[i], samples.sigmas[i + 1])
    return x, velocities, torch.stack(squares).mean(0) if squares else None
