"""Noise schedules: sigma in [0, 1], 1 is pure noise. Step i goes from sigmas[i] to sigmas[i + 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
FLUX_TOKENS, FLUX_MU = (256, 4096), (0.5, 1.15)


def static_shift_sigmas(num_steps: int, shift: float) -> Tensor:
    """(num_steps + 1,) float32: SD3's schedule, sigma' = shift sigma / (1 + (shift - 1) sigma).

    Equal to diffusers' FlowMatchEulerDiscreteScheduler: its grid ends at the *shifted* smallest
    sigma and is shifted again, so the low end is shifted twice.
    """
    _check(num_steps)
    sigma_min = _shift(torch.tensor(1 / NUM_TRAIN_TIMESTEPS, dtype=torch.float64), shift)
    grid = torch.linspace(1.0, float(sigma_min), num_steps, dtype=torch.float64)
    return _with_zero(_shift(grid, shift))


def dynamic_shift_sigmas(num_steps: int, mu: float) -> Tensor:
    """(num_steps + 1,) float32: FLUX's schedule, sigma' = e^mu / (e^mu + 1/sigma - 1)."""
    _check(num_steps)
    grid = torch.linspace(1.0, 1 / num_steps, num_steps, dtype=torch.float64)
    return _with_zero(math.exp(mu) / (math.exp(mu) + (1 / grid - 1)))


def flux_mu(num_tokens: int) -> float:
    """mu of FLUX.1, linear in the number of image tokens: 256 -> 0.5, 4096 -> 1.15."""
    (t0, t1), (m0, m1) = FLUX_TOKENS, FLUX_MU
    return m0 + (num_tokens - t0) * (m1 - m0) / (t1 - t0)


def _shift(sigma: Tensor, shift: float) -> Tensor:
    return shift * sigma / (1 + (shift - 1) * sigma)


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas.float(), torch.zeros(1)])


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: a schedule has at least one step")
