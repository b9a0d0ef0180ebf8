"""The KL term: distance of a step from the reference policy's. float32, shape (B,)."""

from __future__ import annotations

from torch import Tensor

from flow_trainer.algorithm.dynamics import Transition


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
