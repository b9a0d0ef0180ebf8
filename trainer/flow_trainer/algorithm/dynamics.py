"""One denoising step as a probability distribution p(x_next | x), and the ODE step without noise.

Convention: x_sigma = (1 - sigma) x_0 + sigma eps, the model predicts v = eps - x_0, a step goes from
sigma to sigma_next < sigma, and D = sigma - sigma_next > 0. Hence x_0 = x - sigma v and
eps = x + (1 - sigma) v. Everything is float32.

Shapes: x, v, mean (B, ...); sigma, sigma_next: a float, or (B,) when rows are at different steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transition:
    """Gaussian N(mean, std^2) of one step."""

    mean: Tensor
    """(B, ...) float32."""
    std: Tensor
    """(B, 1, ...) float32, the standard deviation of the whole step (sqrt(D) included)."""
    scaled: bool = True
    """False: log_prob leaves out 1/(2 std^2) and the constants (CPS)."""

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise

    def log_prob(self, x_next: Tensor) -> Tensor:
        """(B,) float32: log-density of x_next, averaged (not summed) over the elements.

        The average is Flow-GRPO's convention: the joint log-ratio is n times larger, so the useful
        clip range depends on n. `x_next` is data: no gradient flows through it.
        """
        square = (x_next.detach().float() - self.mean) ** 2
        if self.scaled:
            constants = torch.log(self.std) + 0.5 * math.log(2 * math.pi)
            log_prob = -square / (2 * self.std**2) - constants
        else:
            log_prob = -square
        return log_prob.flatten(1).mean(1)


Step = Callable[[Tensor, Tensor, Tensor | float, Tensor | float, float, Tensor | float], Transition]


def euler(x: Tensor, v: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """The probability-flow ODE step x + (sigma_next - sigma) v."""
    x, v = x.float(), v.float()
    return x + (_column(sigma_next, x) - _column(sigma, x)) * v


def flow_sde(
    x: Tensor,
    v: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    sigma_max: Tensor | float,
) -> Transition:
    """Flow-GRPO's step (arXiv 2505.05470, eq. 9), diffusion g = a sqrt(sigma / (1 - sigma)).

    mean = x - D [v + g^2 / (2 sigma) (x + (1 - sigma) v)], std = g sqrt(D). At sigma = 1 the
    denominator is 1 - sigma_max, with sigma_max the second entry of the schedule.
    """
    x, v, s, u = _prepare(x, v, sigma, sigma_next, noise_level)
    g = noise_level * torch.sqrt(s / (1 - torch.where(s == 1, sigma_max, s)))
    return _sde(x, v, s, u, g)


def dance_sde(
    x: Tensor,
    v: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    sigma_max: Tensor | float,
) -> Transition:
    """DanceGRPO's step (arXiv 2505.07818): the same drift with constant diffusion g = eta."""
    x, v, s, u = _prepare(x, v, sigma, sigma_next, noise_level)
    return _sde(x, v, s, u, torch.full_like(s, noise_level))


def flash_sde(
    x: Tensor,
    v: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    sigma_max: Tensor | float,
) -> Transition:
    """Flash-GRPO's step, as in UniRL: the same drift with diffusion linear in sigma,
    g = a sigma_max sigma."""
    x, v, s, u = _prepare(x, v, sigma, sigma_next, noise_level)
    return _sde(x, v, s, u, noise_level * sigma_max * s)


def cps(
    x: Tensor,
    v: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    sigma_max: Tensor | float,
) -> Transition:
    """Flow-CPS (arXiv 2509.05952): predicted noise is swapped for fresh noise, so that the total
    noise coefficient stays sigma_next.

    mean = (1 - u) x_0 + u cos(a pi/2) eps, std = u sin(a pi/2), u = sigma_next. At u = 0 the step is
    deterministic. Its log_prob is the plain negative mean square, as in every implementation.
    """
    x, v, s, u = _prepare(x, v, sigma, sigma_next, noise_level)
    angle = noise_level * math.pi / 2
    mean = (1 - u) * (x - s * v) + u * math.cos(angle) * (x + (1 - s) * v)
    return Transition(mean, u * math.sin(angle), scaled=False)


def ode(
    x: Tensor,
    v: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    sigma_max: Tensor | float,
) -> Transition:
    """The Euler step as a transition without noise, std 0; its log_prob is the negative mean square."""
    mean = euler(x, v, sigma, sigma_next)
    return Transition(mean, torch.zeros_like(_column(sigma, mean)), scaled=False)


DYNAMICS: dict[str, Step] = {
    "flow_sde": flow_sde,
    "cps": cps,
    "dance_sde": dance_sde,
    "flash_sde": flash_sde,
    "ode": ode,
}


def _sde(x: Tensor, v: Tensor, s: Tensor, u: Tensor, g: Tensor) -> Transition:
    d = s - u
    drift = v + g**2 / (2 * s) * (x + (1 - s) * v)
    return Transition(x - d * drift, g * torch.sqrt(d))


def _prepare(
    x: Tensor, v: Tensor, sigma: Tensor | float, sigma_next: Tensor | float, noise_level: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if noise_level <= 0:
        raise ValueError(
            f"noise_level = {noise_level} makes a stochastic step deterministic and its density "
            "undefined: use an Euler step (narrow sampling.window) or a positive noise_level"
        )
    x, v = x.float(), v.float()
    return x, v, _column(sigma, x), _column(sigma_next, x)


def _column(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma as (B or 1, 1, ...) float32 on x's device, to broadcast over a sample's elements."""
    column = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
    return column.view(-1, *[1] * (x.ndim - 1))
