"""RAM (arXiv 2605.10759): regression of the velocity to the reference plus the advantage times the
direction of the sample. The rule is that of jaemoo-choi/rethinking-diffusion-rl; the authors' own code
was not to be had."""

from __future__ import annotations

from torch import Tensor

from flow_trainer.algorithm.objectives.matching import Noised, mean_square


def ram_objective(
    step: Noised, advantages: Tensor, *, strength: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean((v - (v_ref + m A (target - v_old)))^2) per row, m = `strength`; only v has a gradient."""
    advantage = advantages.view(-1, *[1] * (step.v.ndim - 1))
    direction = step.target - step.v_old.detach()
    loss = mean_square(step.v, step.reference + strength * advantage * direction)
    diagnostics = {
        "policy_loss": loss.detach(),
        "old_deviation": mean_square(step.v, step.v_old).detach(),
    }
    return loss, diagnostics
