"""Which members of a large group are worth training on: those that the reward sets furthest apart."""

from __future__ import annotations

import numpy as np


def top_and_bottom(rewards: np.ndarray, valid: np.ndarray, top: int, bottom: int) -> list[int]:
    """Of a group's rewards (G,): the `top` best, best first, then the `bottom` worst of the rest, worst
    first; ties go to the lower index (the rule of UniRL's Sol-RL, arXiv 2604.06916). Members that are
    not valid (G,) come last, and only where there are too few others."""
    scored = [int(i) for i in np.flatnonzero(valid)]
    best = sorted(scored, key=lambda i: -rewards[i])[:top]
    rest = sorted(set(scored) - set(best))
    worst = sorted(rest, key=lambda i: rewards[i])[:bottom]
    chosen = best + worst
    spare = [i for i in range(len(rewards)) if i not in chosen]
    return chosen + spare[: top + bottom - len(chosen)]
