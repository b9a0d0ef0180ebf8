"""Which denoising steps are stochastic, and so trained, in an epoch. All samples of an epoch share
the window: differences inside a group then come from the policy's samples, not from the window."""

from __future__ import annotations

import random


def window(
    kind: str,
    *,
    num_steps: int,
    size: int,
    lo: int,
    hi: int | None,
    every: int,
    stride: int,
    epoch: int,
    seed: int,
) -> range:
    """Contiguous step indices in [0, num_steps - 1).

    all: every step but the last. first: `size` steps from `lo`. random: `size` steps placed
    uniformly inside [lo, hi) by (seed, epoch) (Flow-GRPO-Fast). progressive: `size` steps that start
    at `lo` and move right by `stride` every `every` epochs; at the right end the window shrinks, and
    once it has left [lo, hi) it starts again (MixGRPO, arXiv 2507.21802, except that the original
    first spends one period without any trained step). `hi` is exclusive, by default num_steps - 1.

    The last step is never in it: its sigma is so small that the log-density overflows. Raises
    ValueError when the window does not fit.
    """
    last = num_steps - 1
    if kind == "all":
        return range(last)
    hi = last if hi is None else hi
    if hi > last:
        raise ValueError(
            f"sampling.window.hi = {hi}: the last of {num_steps} steps cannot be stochastic, so hi "
            f"is at most {last}"
        )
    starts = hi - lo - size + 1
    if starts < 1:
        raise ValueError(f"sampling.window: {size} steps do not fit into steps {lo} to {hi - 1}")
    match kind:
        case "first":
            start = lo
        case "random":
            start = lo + random.Random(f"window/{seed}/{epoch}").randrange(starts)
        case "progressive":
            positions = -(-(hi - lo) // stride)
            start = lo + stride * (epoch // every % positions)
        case _:
            raise ValueError(f"unknown window kind {kind!r}: all, first, random or progressive")
    return range(start, min(start + size, hi))
