"""Noise schedules: sigma in [0, 1], 1 is pure noise. Step i goes from sigmas[i] to sigmas[i + 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def static_shift_sigmas(num_steps: int, shift: float, terminal: float | None = None) -> Tensor:
    """(num_steps + 1,) float32: SD3's schedule, sigma' = shift sigma / (1 + (shift - 1) sigma).

    Equal to diffusers' FlowMatchEulerDiscreteScheduler: its grid ends at the *shifted* smallest
    sigma and is shifted again, so the low end is shifted twice.
    """
    sigma_min = _shift(torch.tensor(1 / NUM_TRAIN_TIMESTEPS, dtype=torch.float64), shift)
    return shifted_sigmas(num_steps, shift, float(sigma_min), terminal)


def dynamic_shift_sigmas(num_steps: int, mu: float, terminal: float | None = None) -> Tensor:
    """(num_steps + 1,) float32: FLUX's schedule, sigma' = e^mu / (e^mu + 1/sigma - 1), which is the
    static shift by e^mu of a grid that ends at 1 / num_steps."""
    return shifted_sigmas(num_steps, math.exp(mu), 1 / num_steps, terminal)


def shifted_sigmas(
    num_steps: int, shift: float, grid_end: float, terminal: float | None = None
) -> Tensor:
    """(num_steps + 1,) float32: an even grid from 1 down to `grid_end`, shifted, and 0.

    `terminal` (Qwen-Image) stretches it so that its last entry before 0 is this one; a single step
    has nothing to stretch.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: a schedule has at least one step")
    sigmas = _shift(torch.linspace(1.0, grid_end, num_steps, dtype=torch.float64), shift)
    if terminal and num_steps > 1:
        sigmas = 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])
    return torch.cat([sigmas.float(), torch.zeros(1)])


def sigma_at(sigmas: Tensor, position: Tensor) -> Tensor:
    """Noise level at a position in [0, T) of the schedule (T + 1,), linear between its steps."""
    step = position.long().clamp(max=len(sigmas) - 2)
    return torch.lerp(sigmas[step], sigmas[step + 1], position - step)


def shift_mu(
    num_tokens: int,
    tokens: tuple[int, int] = (256, 4096),
    mu: tuple[float, float] = (0.5, 1.15),
) -> float:
    """mu, linear in the number of image tokens; FLUX.1's by default: 256 -> 0.5, 4096 -> 1.15."""
    return mu[0] + (num_tokens - tokens[0]) * (mu[1] - mu[0]) / (tokens[1] - tokens[0])


def _shift(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)
