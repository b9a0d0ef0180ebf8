"""The policy loss of GRPO and its KL term, per (sample, step). All float32, shape (B,)."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.dynamics import Transition


def clip_objective(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """max(-A r, -A clip(r, 1 - e, 1 + e)) with r = exp(log_prob - old_log_prob), and diagnostics.

    arXiv 2505.05470, eq. 5. Gradient flows through `log_prob` alone.
    """
    log_ratio = log_prob - old_log_prob.detach()
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
    The forms' values differ by orders of magnitude, so `beta` belongs to a form.
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
