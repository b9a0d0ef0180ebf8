"""Policy gradients on an ELBO (arXiv 2602.04663): a finished sample's likelihood by how well the
velocity matches it, with the plain, the proximal or the clipped gradient.

Rules of jaemoo-choi/rethinking-diffusion-rl, whose numbers are the test. PAR is left out: both its
ratio and its difference to PEPG are constants to the gradient, which is PEPG's. Of V-GRPO
(arXiv 2604.23380), which clips the ratio of the same likelihood, no code was to be had: its pairs of
noise and time shared in a group and its stratified times are settings of [forward]; its soft clip of
advantages, whose formula was not to be had either, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.objectives.clip import clipped_loss
from flow_trainer.algorithm.objectives.matching import Noised

MIN_ERROR = 1e-5
MIN_SIGMA = 1e-3


def elbo(step: Noised, v: Tensor, weighting: str, guidance: float = 1.0) -> Tensor:
    """(B,) float64, at most 0: minus the weighted error m = mean((v - target)^2) at noise sigma = t.

    adaptive: t^2 m over the detached mean absolute error of the predicted x_0, and over the
    `guidance` scale that v holds. t: t^2 m. uniform: m over guidance^2. exact: (1 - t) / (t + 1e-3) m,
    the weight of the evidence lower bound, 0 at t = 1.
    """
    error = (v.double() - step.target.double()).flatten(1)
    m, t = (error**2).mean(1), step.sigma.double()
    match weighting:
        case "adaptive":
            scale = (t * error.detach().abs().mean(1)).clamp(min=MIN_ERROR)
            return -(t**2) * m / scale / guidance
        case "t":
            return -(t**2) * m
        case "uniform":
            return -m / guidance**2
        case "exact":
            return -(1 - t) / (t + MIN_SIGMA) * m
        case _:
            raise ValueError(f"unknown likelihood {weighting!r}: adaptive, t, uniform or exact")


def epg_objective(
    step: Noised,
    advantages: Tensor,
    *,
    gradient: str,
    likelihood: str,
    ratio: bool,
    clip_range: float,
    guidance: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss per row with E = `elbo` of v, E_old that of v_old, l = E - E_old.

    epg: -exp(l) A E. pepg: -exp(l) (A - l) E, which also pulls towards the old policy. In both the
    factor of E is a constant; without `ratio` exp(l) is left out of it. clip: PPO's clip of exp(l).
    Raises ValueError for another `gradient`.
    """
    e = elbo(step, step.v, likelihood, guidance)
    e_old = elbo(step, step.v_old, likelihood, guidance).detach()
    a, log_ratio = advantages.double(), (e - e_old).detach()
    match gradient:
        case "epg":
            factor = a
        case "pepg":
            factor = a - log_ratio
        case "clip":
            loss, diagnostics = clipped_loss((e - e_old).float(), advantages, clip_range)
            return loss, {**diagnostics, "elbo": e.detach()}
        case _:
            raise ValueError(f"unknown gradient {gradient!r}: epg, pepg or clip")
    if ratio:
        factor = torch.exp(log_ratio) * factor
    loss = -factor * e
    diagnostics = {
        "policy_loss": loss.detach(),
        "approx_kl": 0.5 * log_ratio**2,
        "elbo": e.detach(),
    }
    return loss.float(), diagnostics


def likelihood_kl(form: str, e: Tensor, e_ref: Tensor) -> Tensor:
    """(B,): distance from the reference by the likelihoods E and E_ref, with K = E - E_ref.

    kl2: K^2 / 2. kl3: exp(-K) - 1 + K, which for samples of the current policy has the divergence as
    its mean; the original has K of the opposite sign in it. Its kl1, K, is left out: its gradient
    lowers the likelihood of every sample whatever the reference is. So are the forms with an
    importance ratio, through which the original lets the gradient flow.
    """
    k = e - e_ref.detach()
    match form:
        case "kl2":
            return k**2 / 2
        case "kl3":
            return torch.exp(-k) - 1 + k
        case _:
            raise ValueError(f"unknown KL form {form!r}: kl2 or kl3")
