"""GRPO-Guard (arXiv 2510.22319): the clipped objective with a ratio normalised per step."""

from __future__ import annotations

from torch import Tensor

from flow_trainer.algorithm.objectives.clip import Replayed, clipped_loss


def guard_objective(
    step: Replayed, advantages: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped loss of r = exp((log_prob - old_log_prob + b) std), divided by D.

    b = mean((mean - old_mean)^2) / (2 std^2) is what the log-ratio loses on average when the mean
    moves; without it the ratio of a moved policy sits below 1 and the clip acts on one side. std
    and 1/D give all steps the same scale. Per sample: flow_grpo's script also averages b over the
    batch, an error larger than its clip. Needs a Gaussian log_prob (flow_sde, dance_sde).
    """
    log_ratio = (step.log_prob - step.old_log_prob.detach()) * step.std
    log_ratio = log_ratio + step.mean_shift() / (2 * step.std)
    loss, diagnostics = clipped_loss(log_ratio, advantages, clip_range)
    return loss / step.d, diagnostics
