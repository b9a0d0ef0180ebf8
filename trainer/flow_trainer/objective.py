"""The policy loss of GRPO and its KL term, per (sample, step). All float32, shape (B,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_trainer.dynamics import Transition


@dataclass(frozen=True, slots=True)
class Replayed:
    """B (sample, step) pairs under the policy as it is now, beside what the rollout recorded."""

    log_prob: Tensor
    """(B,) of the recorded next latent; carries the gradient."""
    old_log_prob: Tensor
    """(B,) under the policy that drew it."""
    std: Tensor
    """(B,) of the whole step."""
    d: Tensor
    """(B,) D = sigma - sigma_next."""
    mean_square: Tensor | None = None
    """(B,) mean((mean - old_mean)^2) over the elements; None where old means are not kept."""

    def mean_shift(self) -> Tensor:
        if self.mean_square is None:
            raise ValueError("this objective needs the rollout's means: see Update.needs_old_means")
        return self.mean_square


Objective = Callable[[Replayed, Tensor, float], tuple[Tensor, dict[str, Tensor]]]
"""(replayed steps, advantages (B,), size of the trust region) to (loss (B,), diagnostics)."""


def clip_objective(
    step: Replayed, advantages: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """max(-A r, -A clip(r, 1 - e, 1 + e)) with r = exp(log_prob - old_log_prob), and diagnostics.

    arXiv 2505.05470, eq. 5. Gradient flows through `log_prob` alone.
    """
    return clipped_loss(step.log_prob - step.old_log_prob.detach(), advantages, clip_range)


def clipped_loss(
    log_ratio: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate of a log-ratio."""
    ratio = torch.exp(log_ratio)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    with torch.no_grad():
        diagnostics = {
            "policy_loss": loss.detach(),
            "approx_kl": 0.5 * log_ratio.detach() ** 2,
            "clip_fraction": ((ratio - 1).abs() > clip_range).float(),
            "clip_fraction_above": (ratio - 1 > clip_range).float(),
            "clip_fraction_below": (1 - ratio > clip_range).float(),
        }
    return loss, diagnostics


def kl_divergence(
    form: str,
    transition: Transition,
    reference: Transition,
    v: Tensor,
    v_ref: Tensor,
    d: Tensor,
) -> Tensor:
    """Distance of a step from the reference policy's, averaged over the elements.

    gaussian: KL(p || p_ref) = (mean - mean_ref)^2 / (2 std^2), both having the same std (the paper).
    gaussian_unscaled: the same with std^2 / D in place of std^2 (flow_grpo since July 2025; its beta
    is about ten times larger at T = 10). velocity: (v - v_ref)^2. `d` (B,): D of each row's step.
    The forms' values differ by orders of magnitude, so `beta` belongs to a form. The std of CPS holds
    no D to leave out: there flow_grpo's is `gaussian`.
    """
    match form:
        case "velocity":
            square = (v.float() - v_ref.detach().float()) ** 2
        case "gaussian" | "gaussian_unscaled":
            variance = transition.std**2
            if form == "gaussian_unscaled":
                variance = variance / d.to(variance).view(-1, *[1] * (variance.ndim - 1))
            square = (transition.mean - reference.mean.detach()) ** 2 / (2 * variance)
        case _:
            raise ValueError(
                f"unknown update.kl {form!r}: gaussian, gaussian_unscaled, velocity or none"
            )
    return square.flatten(1).mean(1)
