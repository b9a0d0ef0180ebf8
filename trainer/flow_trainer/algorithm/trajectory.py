"""What a rollout leaves for the update: finished latents, and those around every stochastic step."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Samples of one epoch that this process drew, B of them in the order of their rows; the epoch's
    row of member g of its prompt p is p * group_size + g.

    W stochastic steps (contiguous), latents float32.
    """

    rows: list[int]
    """(B) ascending."""
    window: range
    """Indices of the stochastic steps in the schedule."""
    sigmas: Tensor
    """(T + 1,) float32, as the samples were drawn: under refl they go from the window's last step to 0."""
    keys: list[tuple[int, int]]
    """(B) who each row is: prompt index in the prompt file, member of the group."""
    x_0: Tensor
    """(B, C, h, w): finished latents."""
    latents: Tensor
    """(B, W + 1, C, h, w): before each stochastic step, and after the last; (B, 0) without any. Under
    refl (B, 1, C, h, w), before the first step with a gradient."""
    log_probs: Tensor
    """(B, W): of latents[:, j + 1] under the policy that drew it."""
    means: Tensor | None
    """(B, W, C, h, w): what latents[:, j + 1] was drawn around; kept for objectives that compare
    means."""

    def at(self, rows: range) -> slice:
        """Where the samples of these consecutive rows of the epoch are."""
        start = bisect_left(self.rows, rows.start)
        return slice(start, start + len(rows))
