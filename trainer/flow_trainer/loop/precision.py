"""What the type in which a network computes does to its training: its gradient and its log-ratios
beside those of float32, from the same weights and the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.errors import NonFiniteError
from flow_trainer.loop.rollout import rollout, transition
from flow_trainer.loop.updates.chosen import update_chosen
from flow_trainer.loop.updates.distill import update_distill
from flow_trainer.loop.updates.forward import (
    LIKELIHOODS,
    clips_likelihoods,
    level_noise,
    noised,
    update_forward,
)
from flow_trainer.loop.updates.loss_scale import LossScale, loss_pairs
from flow_trainer.loop.updates.replay import (
    make_replay,
    reference_velocities,
    step_chunks,
    trained_steps,
)
from flow_trainer.loop.updates.through_pixels import PixelGradients, update_through_pixels
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.policy import Policy
from flow_trainer.models.prompt_rows import PromptRows
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt

MOST_ZEROS = 0.01
LEAST_COSINE, GOOD_COSINE = 0.9, 0.99
MOST_OF_CLIP = 2.0
"""Error of a log-ratio in units of the clip. At 1, rounding alone drops a sixth of the samples from an
update whose policy has moved, at 2 a third, at most a half: at random, which costs samples and not
direction, but what the clip was to hold back is no longer what it sees."""
CLIPPED = ("clip", "guard")
"""Objectives on trajectories that clip a log-ratio."""
MEMBERS = 2
"""Samples that are compared: one with advantage 1, one with -1."""
STEPS = 3
"""Of their trained steps, at most."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Of a type, beside float32."""

    dtype: str
    loss_scale: float
    """At which the gradient did not overflow."""
    zeros: float
    """Share of the trained weights' gradient elements that are 0, although they are not in float32."""
    cosine: float
    """Between both gradients; 0 when there is none."""
    log_ratio_error: float | None
    """Root mean square over (sample, step) pairs of what the clip sees, after a step of size
    learning_rate in every weight; None where no log-ratio is clipped."""
    clip_range: float

    @property
    def problem(self) -> str | None:
        """What is wrong, with the fix."""
        if self.zeros > MOST_ZEROS or self.cosine < LEAST_COSINE:
            return "the gradient is lost to rounding: set model.dtype = float32"
        if self._of_clip > MOST_OF_CLIP:
            return f"the clip acts on rounding: {self._fix}"
        return None

    @property
    def concern(self) -> str | None:
        """What costs something where nothing is wrong, as in the originals' own runs in bfloat16."""
        if self.problem is not None:
            return None
        if self._of_clip > 1:
            found = "rounding is as large as the clip and drops samples at random; if it matters, "
            return found + self._fix
        if self.cosine < GOOD_COSINE:
            return "rounding turns the gradient a little; if it matters, set model.dtype = float32"
        return None

    @property
    def _of_clip(self) -> float:
        return (self.log_ratio_error or 0.0) / self.clip_range

    @property
    def _fix(self) -> str:
        return (
            "set model.dtype = float32, or update.clip_range to "
            f"{2 * (self.log_ratio_error or 0.0):.0e} or more"
        )

    def explain(self) -> str:
        found = (
            f"{self.dtype} beside float32: {self.zeros:.1%} of the gradient is 0, cosine "
            f"{self.cosine:.4f}"
        )
        if self.loss_scale != 1:
            found += f" at loss scale 2^{math.log2(self.loss_scale):.0f}"
        if self.log_ratio_error is not None:
            found += (
                f"; log-ratios err by {self.log_ratio_error:.0e}, clip_range {self.clip_range:g}"
            )
        said = self.problem or self.concern
        return found if said is None else f"{found}: {said}"


def measure_precision(
    policy: Policy, recipe: Recipe, prompt: Prompt, scale: LossScale
) -> Precision:
    """Samples two images of `prompt` and takes their gradient as an update does, at `scale` and with the
    recipe's own divisor, in the policy's type and in float32. Weights are left as they were."""
    small = _of_one_prompt(recipe)
    samples = rollout(policy, small, 0, [prompt], [0], lambda rows, images: None)
    # a smaller divisor, made up for by the scale
    share = loss_pairs(small) / loss_pairs(recipe)
    value = scale.value
    while (found := _gradient(policy, small, samples, prompt, value * share)) is None:
        value /= 2
    with policy.in_float32():
        own = _scored_again(policy, small, samples, prompt)
        exact = _gradient(policy, small, own, prompt, 1.0)
    assert exact is not None
    present = exact != 0
    lost = (found == 0) & present
    error = None
    if recipe.update.objective in CLIPPED or clips_likelihoods(recipe):
        error = _log_ratio_error(policy, small, samples, prompt, exact)
    return Precision(
        dtype=str(policy.dtype).removeprefix("torch."),
        loss_scale=value,
        zeros=float(lost.sum() / present.sum().clamp(min=1)),
        cosine=float(nn.functional.cosine_similarity(found.double(), exact.double(), dim=0)),
        log_ratio_error=error,
        clip_range=recipe.update.clip_range,
    )


def _of_one_prompt(recipe: Recipe) -> Recipe:
    """The recipe with one update on MEMBERS images of one prompt."""
    sampling = {"prompts_per_epoch": 1, "group_size": MEMBERS, "micro_batch": MEMBERS}
    steps = min(recipe.update.trained_steps or STEPS, STEPS)
    update = {"updates_per_epoch": 1, "warmup_updates": 0, "trained_steps": steps}
    return recipe.model_copy(
        update={
            "sampling": recipe.sampling.model_copy(update=sampling),
            "update": recipe.update.model_copy(update=update),
        }
    )


@torch.no_grad()
def _scored_again(
    policy: Policy, recipe: Recipe, samples: Trajectories, prompt: Prompt
) -> Trajectories:
    """The samples as drawn, with the densities and means of the type in which the policy computes now:
    a ratio across types would be clipped for their difference."""
    if recipe.update.trains_on != "trajectories":
        return samples
    log_probs, means = samples.log_probs.clone(), samples.means
    means = None if means is None else means.clone()
    conditioning = PromptRows(policy, [prompt.text])
    for offset in range(len(samples.window)):
        r = make_replay(recipe, samples, conditioning, range(MEMBERS), [offset])
        v = policy.velocity(r.x, r.sigmas[r.steps], r.conditioning)
        step = transition(recipe, r.sigmas, r.steps, r.x, v)
        log_probs[:, offset] = step.log_prob(r.x_next)
        if means is not None:
            means[:, offset] = step.mean
    return replace(samples, log_probs=log_probs, means=means)


class _Captured(torch.optim.Optimizer):
    """Takes no step; keeps the gradient of the one it was asked for."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._parameters = parameters
        self.gradient: Tensor | None = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self.gradient = torch.cat([grad.detach().flatten() for grad in grads])


def _gradient(
    policy: Policy, recipe: Recipe, samples: Trajectories, prompt: Prompt, scale: float
) -> Tensor | None:
    """Of all trained weights in one, clipped as any; all 0 when it is lost, None when it overflows."""
    parameters = list(policy.trainable().values())
    optimizer = _Captured(parameters)
    conditioning = PromptRows(policy, [prompt.text])
    signs = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    advantages = Advantages(signs, torch.ones(1, MEMBERS, dtype=torch.bool), {})
    what = recipe, 0, samples, conditioning, advantages
    # halving is for the caller to do
    once = LossScale(scale, dynamic=True)
    try:
        if recipe.update.trains_on == "gradients":
            made_up = _made_up_gradients(policy, recipe)
            update_through_pixels(policy, optimizer, None, *what[:-1], made_up, scale=once)
        elif recipe.update.forward_process:
            chooses = recipe.update.trains_on == "chosen samples"
            update_samples = update_chosen if chooses else update_forward
            old = Ema(policy.trainable(), lambda k: 1.0)
            update_samples(policy, optimizer, None, old, *what, scale=once)
        elif recipe.teachers:
            source = next(iter(recipe.teachers))
            update_distill(policy, optimizer, None, *what[:-1], [source], scale=once)
        else:
            v_ref = reference_velocities(policy, recipe, 0, samples, conditioning)
            update_policy(policy, optimizer, None, *what, v_ref, scale=once)
    except NonFiniteError:
        lost = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        if lost.any():
            raise
        return torch.zeros(sum(p.numel() for p in parameters), device=policy.device)
    finally:
        optimizer.zero_grad()
    return optimizer.gradient


def _made_up_gradients(policy: Policy, recipe: Recipe) -> Callable[[], PixelGradients]:
    """Of no reward: the same normal numbers for every image, of length 1."""
    size = (recipe.model.height, recipe.model.width, 3)
    image = torch.randn(size, generator=torch.Generator().manual_seed(0)) / math.prod(size) ** 0.5
    ones = torch.ones(MEMBERS)
    return lambda: PixelGradients(ones, ones > 0, lambda rows: image.expand(len(rows), *size))


@torch.no_grad()
def _log_ratio_error(
    policy: Policy, recipe: Recipe, samples: Trajectories, prompt: Prompt, gradient: Tensor
) -> float:
    parameters = list(policy.trainable().values())
    before = [p.detach().clone() for p in parameters]
    conditioning = PromptRows(policy, [prompt.text])

    def log_probs() -> Tensor:
        found = _log_probs(policy, recipe, samples, conditioning)
        with policy.in_float32():
            return torch.stack([found, _log_probs(policy, recipe, samples, conditioning)])

    start = log_probs()
    try:
        # AdamW's first step
        steps = gradient.sign().split([p.numel() for p in parameters])
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.sub_(step.view_as(parameter), alpha=recipe.update.learning_rate)
        ratio, exact = (log_probs() - start).double()
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return math.sqrt(float(((ratio - exact) ** 2).mean()))


def _log_probs(policy: Policy, recipe: Recipe, samples: Trajectories, conditioning: Rows) -> Tensor:
    """Of all (sample, step) pairs, as the objective compares them."""
    if recipe.update.forward_process:
        return _likelihoods(policy, recipe, samples, conditioning)
    found = []
    for offsets in step_chunks(trained_steps(recipe, 0), recipe.update.steps_per_forward):
        r = make_replay(recipe, samples, conditioning, range(MEMBERS), offsets)
        v = policy.velocity(r.x, r.sigmas[r.steps], r.conditioning)
        step = transition(recipe, r.sigmas, r.steps, r.x, v)
        unit = step.std.flatten() if recipe.update.objective == "guard" else 1.0
        found.append(step.log_prob(r.x_next) * unit)
    return torch.cat(found)


def _likelihoods(
    policy: Policy, recipe: Recipe, samples: Trajectories, conditioning: Rows
) -> Tensor:
    rows = range(MEMBERS)
    old = Ema(policy.trainable(), lambda k: 1.0)
    found = []
    for offsets in step_chunks(list(range(recipe.forward_steps)), recipe.update.steps_per_forward):
        noise = level_noise(policy, recipe, 0, samples, rows, offsets).to(policy.device)
        kept = torch.ones(len(noise), dtype=torch.bool, device=policy.device)
        step = noised(policy, old, recipe, 0, samples, conditioning, rows, offsets, noise, kept)
        found.append(LIKELIHOODS[recipe.update.objective](recipe, step))
    return torch.cat(found)
