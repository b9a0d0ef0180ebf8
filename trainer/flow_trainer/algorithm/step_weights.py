"""Factors of the loss of each denoising step: how much a step's noise lets the policy explore."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import DYNAMICS

NOISE_SCALE = 2.25
"""Of TempFlow-GRPO's published runs."""


def step_stds(dynamics: str, sigmas: Tensor, noise_level: float) -> Tensor:
    """(T,): standard deviation of every whole step of the schedule `sigmas` (T + 1,)."""
    anything = torch.zeros(len(sigmas) - 1, 1, device=sigmas.device)
    step = DYNAMICS[dynamics]
    ends = sigmas[:-1], sigmas[1:]
    return step(anything, anything, *ends, noise_level, sigmas[1]).std.flatten()


def noise_weights(stds: Tensor) -> Tensor:
    """(T,): 2.25 std (TempFlow-GRPO, arXiv 2508.04324), so that the noisy early steps count most."""
    return NOISE_SCALE * stds


def flash_weights(stds: Tensor, sigmas: Tensor, pool: range) -> Tensor:
    """(T,): 1 / (q / g + q g (1 - s) / (2 s)) over its mean in the steps `pool`, with q = sqrt(D) and
    g = std / q the diffusion (Flash-GRPO, as in UniRL).

    The denominator is how much a step's mean moves with the velocity, in standard deviations; without
    it the late, nearly noiseless steps outweigh the others.
    """
    s, q = sigmas[:-1], torch.sqrt(sigmas[:-1] - sigmas[1:])
    g = stds / q
    weights = 1 / (q / g + q * g * (1 - s) / (2 * s))
    return weights / weights[pool.start : pool.stop].mean()
