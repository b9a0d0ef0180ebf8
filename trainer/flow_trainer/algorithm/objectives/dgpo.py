"""DGPO (arXiv 2510.08425): preference of a whole group of samples, at the same noise, over another."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.objectives.matching import Noised, group_sums, mean_square


def dgpo_objective(
    step: Noised, advantages: Tensor, *, strength: float, clip_range: float, group_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """w A d per row, d = mean((v - target)^2), b = `strength`, G = `group_size`.

    w = sigmoid(sum over the group of A b (d - d_ref) / G), a constant: large while the policy does
    worse than the reference on what the group prefers. Where exp(d_old - d) has left [1 - c, 1 + c],
    c = `clip_range`, in the direction that A wants, d has no gradient. Needs whole groups.
    """
    if step.group is None:
        raise ValueError("DGPO needs to know the groups of its rows")
    d = mean_square(step.v, step.target)
    d_ref = mean_square(step.reference, step.target)
    d_old = mean_square(step.v_old.detach(), step.target)
    with torch.no_grad():
        gain = group_sums(advantages * strength * (d - d_ref) / group_size, step.group)
        weight = torch.sigmoid(gain)
        ratio = torch.exp(d_old - d)
        clipped = torch.where(advantages > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    loss = weight * advantages * torch.where(clipped, d.detach(), d)
    diagnostics = {
        "policy_loss": loss.detach(),
        "group_weight": weight,
        "clip_fraction": clipped.float(),
    }
    return loss, diagnostics
