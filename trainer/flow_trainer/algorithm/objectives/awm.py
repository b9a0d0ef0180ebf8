"""Advantage-weighted matching (arXiv 2509.25050): the flow-matching loss as log-probability."""

from __future__ import annotations

from torch import Tensor

from flow_trainer.algorithm.objectives.clip import clipped_loss
from flow_trainer.algorithm.objectives.matching import Noised

EPS = 1e-10
POWER = 0.25


def awm_log_prob(v: Tensor, target: Tensor, sigma: Tensor, weighting: str) -> Tensor:
    """(B,) float64: minus the weighted flow-matching loss m = mean((v - target)^2) at noise sigma.

    uniform: m. t: sigma m. t2: sigma^2 m. huber: sigma sqrt(m). ghuber: sigma 4 m^(1/4). The last
    two are smoothed at 0.
    """
    m = ((v.double() - target.double()) ** 2).flatten(1).mean(1)
    t = sigma.double()
    match weighting:
        case "uniform":
            return -m
        case "t":
            return -t * m
        case "t2":
            return -(t**2) * m
        case "huber":
            return -t * ((m + EPS) ** 0.5 - EPS**0.5)
        case "ghuber":
            return -t * ((m + EPS) ** POWER - EPS**POWER) / POWER
        case _:
            raise ValueError(f"unknown weighting {weighting!r}: uniform, t, t2, huber or ghuber")


def awm_objective(
    step: Noised, advantages: Tensor, *, weighting: str, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped loss of r = exp(log_prob - old log_prob), both at the same noise, per row."""
    log_prob = awm_log_prob(step.v, step.target, step.sigma, weighting)
    old_log_prob = awm_log_prob(step.v_old, step.target, step.sigma, weighting).detach()
    return clipped_loss((log_prob - old_log_prob).float(), advantages, clip_range)
