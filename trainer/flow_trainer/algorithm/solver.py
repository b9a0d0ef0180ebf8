"""The probability-flow ODE dx = v dsigma, from noise to sample: first or second order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import euler

ORDERS = {"ode": 1, "ode2": 2}


class OdeSolver:
    """Steps of one trajectory, in order. Order 1 is Euler's. Order 2 is the multistep rule dpm2 of the
    published nft and epg trainers (DPM-Solver++ in data prediction) in the form of a correction:

    x_next = Euler + (1 - u / s) / 2 (h / h_last) (x_0 - x_0 of the last step),

    from s to u, with x_0 = x - s v and h the step in lambda = log((1 - s) / s). The first and the last
    step are Euler's; so is the second of a schedule that begins at 1, where h_last is infinite.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._x_0: Tensor | None = None
        self._h = torch.tensor(math.inf)

    def step(
        self, x: Tensor, v: Tensor, sigma: Tensor | float, sigma_next: Tensor | float
    ) -> Tensor:
        """x (B, ...) at sigma_next, float32; v (B, ...) is the velocity at x. One sigma for all rows."""
        moved = euler(x, v, sigma, sigma_next)
        if self._order == 1:
            return moved
        s, u = (torch.as_tensor(level, dtype=torch.float64) for level in (sigma, sigma_next))
        x_0, h = x.float() - s * v.float(), torch.log((1 - u) / u) - torch.log((1 - s) / s)
        if self._x_0 is not None:
            factor = torch.where(u > 0, (1 - u / s) / 2 * (h / self._h), 0.0)
            moved = moved + factor * (x_0 - self._x_0)
        self._x_0, self._h = x_0, h
        return moved
