"""The policy loss of GRPO, per (sample, step). All float32, shape (B,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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
