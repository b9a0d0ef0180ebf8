"""DiffusionNFT (arXiv 2509.16117): policy improvement on the forward process, without densities."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.objectives.matching import Noised

MIN_ERROR = 1e-5


def nft_objective(
    step: Noised, advantages: Tensor, *, strength: float, advantage_clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """c (q L+ + (1 - q) L-) / b per row, and diagnostics; b = `strength`, c = `advantage_clip`.

    q = A / (2 c) + 1/2 is the sample's optimality; L+ and L- are the errors in x_0 of the velocities
    v+ = b v + (1 - b) v_old and v- = (1 + b) v_old - b v, so that a good sample pulls v towards its
    own flow and a bad one pushes it to the other side of v_old.
    """
    q = (advantages / advantage_clip).clamp(-1, 1) / 2 + 0.5
    v_old = step.v_old.detach()
    positive = _error(step, strength * step.v + (1 - strength) * v_old)
    negative = _error(step, (1 + strength) * v_old - strength * step.v)
    loss = advantage_clip * (q * positive + (1 - q) * negative) / strength
    with torch.no_grad():
        diagnostics = {
            "policy_loss": loss.detach(),
            "old_deviation": ((step.v - v_old) ** 2).flatten(1).mean(1),
        }
    return loss, diagnostics


def _error(step: Noised, v: Tensor) -> Tensor:
    """(B,) mean square error of the x_0 that v predicts, over its own detached mean absolute error."""
    sigma = step.sigma.view(-1, *[1] * (v.ndim - 1))
    error = (step.x_t - sigma * v - step.x_0).flatten(1)
    scale = error.detach().double().abs().mean(1, keepdim=True).clamp(min=MIN_ERROR)
    return (error**2 / scale.to(error.dtype)).mean(1)
