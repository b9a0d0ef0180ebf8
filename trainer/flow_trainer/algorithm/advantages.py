"""Group-relative advantages: A = (r - mean of the group) / std, over the samples that have a score.

P prompts, G images per prompt. Standard deviations are population ones (ddof 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

EPS = 1e-4
"""Added to the standard deviation of the weighted sum, as in flow_grpo."""
FLOOR = 1e-6
"""Least standard deviation where single rewards are normalised, as in Flow-Factory."""


@dataclass(frozen=True, slots=True)
class Advantages:
    values: Tensor
    """(P, G) float64; 0 where not used."""
    used: Tensor
    """(P, G) bool: scored, and in a group large enough."""
    metrics: dict[str, float]
    """zero_std_ratio, group_std, dropped_groups; over the groups that are used."""


class Term(Protocol):
    """How a reward enters the weighted sum."""

    @property
    def weight(self) -> float: ...

    @property
    def clip(self) -> tuple[float, float] | None: ...

    @property
    def normalise(self) -> str:
        """none, prompt or global."""
        ...


def combine_rewards(
    rewards: Mapping[str, np.ndarray],
    terms: Mapping[str, Term],
    used: np.ndarray,
    *,
    normalise: str | None = None,
) -> np.ndarray:
    """(P, G) weighted sum of rewards (P, G), each clipped and normalised as its term says, over the
    samples `used` (P, G); 0 elsewhere. `normalise` overrides the terms'."""
    total = np.zeros(used.shape)
    for name, values in rewards.items():
        term = terms[name]
        r = np.where(used, values, 0.0).astype(np.float64)
        if term.clip is not None:
            r = np.where(used, r.clip(*term.clip), 0.0)
        match normalise or term.normalise:
            case "prompt":
                r = _standardise(r, used, axis=1)
            case "global":
                r = _standardise(r, used, axis=None)
        total += term.weight * r
    return total


def group_advantages(
    rewards: np.ndarray,
    valid: np.ndarray,
    *,
    std: str,
    min_group: int,
    clip: float,
    scale: float = 1.0,
) -> Advantages:
    """Advantages of rewards (P, G) where valid (P, G); the rest is masked, whatever its value.

    A group with fewer than `min_group` valid members is dropped. `std`: "prompt" divides by the
    group's standard deviation, "global" by that of all used rewards of the epoch, "none" by
    nothing (Dr.GRPO). "gdpo" takes a sum of rewards that are each normalised in their group, and
    normalises it over the epoch (GDPO, arXiv 2601.05242). The result, times `scale`, is clamped to
    [-clip, clip]. A group whose rewards are all equal gets 0.
    """
    used = large_enough(valid, min_group)
    r = np.where(used, rewards, 0.0).astype(np.float64)
    mean, group_std = _moments(r, used, axis=1)
    centred = np.where(used, r - mean, 0.0)
    match std:
        case "prompt":
            advantage = centred / (group_std + EPS)
        case "global":
            advantage = centred / (_moments(r, used, axis=None)[1] + EPS)
        case "none":
            advantage = centred
        case "gdpo":
            advantage = np.where(group_std > 0, _standardise(r, used, axis=None), 0.0)
        case _:
            raise ValueError(f"unknown advantage.std {std!r}: prompt, global, none or gdpo")
    kept = used.any(1)
    stds = group_std[kept, 0]
    return Advantages(
        values=torch.from_numpy(np.clip(scale * advantage, -clip, clip)),
        used=torch.from_numpy(used),
        metrics={
            "group_std": float(stds.mean()) if len(stds) else 0.0,
            "zero_std_ratio": float((stds == 0).mean()) if len(stds) else 0.0,
            "dropped_groups": float((~kept).sum()),
        },
    )


def distinctness(small: Tensor, group_size: int) -> np.ndarray:
    """(P G,): how far each image is from the others of its group: the root mean square difference of
    pixels, 0 to 1, mean over the others. `small`: thumbnails (P * G, h, w, 3) uint8, prompt-major.

    As a bonus it speaks for the rarer kind of image. Without one, a small lead is enough for a policy to
    end in one kind (as in DRIFT, arXiv 2601.12401; DiverseGRPO, arXiv 2512.21514, gives
    its bonus by the size of clusters).
    """
    pixels = small.double().reshape(-1, group_size, small[0].numel()) / 255
    distances = torch.cdist(pixels, pixels) / pixels.shape[2] ** 0.5
    return (distances.sum(2) / (group_size - 1)).flatten().numpy()


def large_enough(valid: np.ndarray, min_group: int) -> np.ndarray:
    """(P, G) bool: valid (P, G), less the groups with fewer than `min_group` valid members."""
    return valid & (valid.sum(1, keepdims=True) >= min_group)


def _standardise(r: np.ndarray, used: np.ndarray, axis: int | None) -> np.ndarray:
    mean, std = _moments(r, used, axis)
    return np.where(used, (r - mean) / np.maximum(std, FLOOR), 0.0)


def _moments(r: np.ndarray, used: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the used entries, (P, 1) or (1, 1); 0 where there are none."""
    count = np.maximum(used.sum(axis, keepdims=True), 1)
    # from the least entry, so that equal entries deviate by 0 and not by rounding
    least = np.where(
        used.any(axis, keepdims=True), r.min(axis, where=used, initial=np.inf, keepdims=True), 0.0
    )
    mean = least + np.where(used, r - least, 0.0).sum(axis, keepdims=True) / count
    square = np.where(used, r - mean, 0.0) ** 2
    return mean, np.sqrt(square.sum(axis, keepdims=True) / count)
