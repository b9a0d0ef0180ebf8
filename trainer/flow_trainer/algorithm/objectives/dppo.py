"""Flow-DPPO (arXiv 2606.11025): a trust region on the exact KL divergence in place of the clip."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.objectives.clip import Replayed


def dppo_objective(
    step: Replayed, advantages: Tensor, max_kl: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-A r, except 0 where the step already is far from the old policy and would move further.

    Far: K = mean((mean - old_mean)^2) / (2 std^2) >= max_kl, the KL divergence per element of two
    Gaussians of equal std. Further: A > 0 with r > 1, or A < 0 with r < 1.
    """
    log_ratio = step.log_prob - step.old_log_prob.detach()
    ratio = torch.exp(log_ratio)
    with torch.no_grad():
        kl = step.mean_shift() / (2 * step.std**2)
        masked = (kl >= max_kl) & (advantages * log_ratio > 0)
    loss = torch.where(masked, 0.0, -advantages * ratio)
    diagnostics = {
        "policy_loss": loss.detach(),
        "approx_kl": kl,
        "masked_fraction": masked.float(),
    }
    return loss, diagnostics
