"""Group-relative advantages: A = (r - mean of the group) / std, over the samples that have a score.

P prompts, G images per prompt. Standard deviations are population ones (ddof 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EPS = 1e-4
"""Added to the standard deviation, as in flow_grpo."""


@dataclass(frozen=True, slots=True)
class Advantages:
    values: Tensor
    """(P, G) float64; 0 where not used."""
    used: Tensor
    """(P, G) bool: scored, and in a group large enough."""
    metrics: dict[str, float]
    """zero_std_ratio, group_std, dropped_groups; over the groups that are used."""


def group_advantages(
    rewards: np.ndarray,
    valid: np.ndarray,
    *,
    std: str,
    min_group: int,
    clip: float,
) -> Advantages:
    """Advantages of rewards (P, G) where valid (P, G); the rest is masked, whatever its value.

    A group with fewer than `min_group` valid members is dropped. `std`: "prompt" divides by the
    group's standard deviation, "global" by that of all used rewards of the epoch, "none" by
    nothing (Dr.GRPO). The result is clamped to [-clip, clip]. A group whose rewards are all equal
    gets 0.
    """
    used = valid & (valid.sum(1, keepdims=True) >= min_group)
    r = np.where(used, rewards, 0.0).astype(np.float64)
    count = np.maximum(used.sum(1, keepdims=True), 1)
    mean = r.sum(1, keepdims=True) / count
    centred = np.where(used, r - mean, 0.0)
    group_std = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    match std:
        case "prompt":
            advantage = centred / (group_std + EPS)
        case "global":
            advantage = centred / ((rewards[used].std() if used.any() else 0.0) + EPS)
        case "none":
            advantage = centred
        case _:
            raise ValueError(f"unknown advantage.std {std!r}: prompt, global or none")
    kept = used.any(1)
    stds = group_std[kept, 0]
    return Advantages(
        values=torch.from_numpy(np.clip(advantage, -clip, clip)),
        used=torch.from_numpy(used),
        metrics={
            "group_std": float(stds.mean()) if len(stds) else 0.0,
            "zero_std_ratio": float((stds == 0).mean()) if len(stds) else 0.0,
            "dropped_groups": float((~kept).sum()),
        },
    )
