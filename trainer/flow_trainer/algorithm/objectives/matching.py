"""What the objectives on the forward process share: finished samples, noised again.

x_t = (1 - sigma) x_0 + sigma noise; a velocity v is compared with the sample's own, noise - x_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Noised:
    """B finished samples, noised again: x_t = (1 - sigma) x_0 + sigma noise, and the velocities there.

    Shapes (B, ...), sigma (B,), float32.
    """

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    sigma: Tensor
    v: Tensor
    """Of the policy; carries the gradient."""
    v_old: Tensor
    """Of the policy that drew x_0."""
    v_ref: Tensor | None = None
    """Of the frozen reference, for the objectives and KL terms that need it."""
    group: Tensor | None = None
    """(B,) int64 from 0: rows of one prompt at one noise level have one number."""
    used: Tensor | None = None
    """(B,) bool: has a score that counts; None: all have."""

    @property
    def target(self) -> Tensor:
        """(B, ...): the velocity that leads to x_0 itself."""
        return self.noise - self.x_0

    @property
    def reference(self) -> Tensor:
        """v_ref. Raises ValueError where it was left out."""
        if self.v_ref is None:
            raise ValueError("this objective needs the reference: see Update.needs_reference")
        return self.v_ref.detach()


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """(B,): mean((a - b)^2) over a row's elements."""
    return ((a - b) ** 2).flatten(1).mean(1)


def group_sums(values: Tensor, group: Tensor) -> Tensor:
    """(B,): for every row, the sum of `values` (B,) over its group (B,)."""
    sums = torch.zeros_like(values).index_add(0, group, values)  # no more groups than rows
    return sums[group]


def group_means(values: Tensor, group: Tensor, used: Tensor | None) -> Tensor:
    """(B,): for every row, the mean of `values` (B,) over the used rows of its group; 0 without any."""
    weight = values.new_ones(len(values)) if used is None else used.to(values)
    return group_sums(values * weight, group) / group_sums(weight, group).clamp(min=1)
