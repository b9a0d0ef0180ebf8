"""Online supervised fine-tuning: each group's best sample is trained on as if it were data.

A baseline of the Flow-GRPO paper (arXiv 2505.05470, appendix).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.objectives.matching import mean_square


def best_of_group(advantages: Tensor, used: Tensor) -> Tensor:
    """(P, G): 1 for the best used sample of each group, ties to the first; 0 for the others, and
    where a group's samples are all as good, so that there is none to choose."""
    best = advantages.masked_fill(~used, -torch.inf).argmax(1, keepdim=True)
    chosen = torch.zeros_like(advantages).scatter(1, best, 1.0)
    return chosen * differs(advantages, used)


def differs(advantages: Tensor, used: Tensor) -> Tensor:
    """(P, 1) bool: the used samples of the group are not all as good."""
    most = advantages.masked_fill(~used, -torch.inf).amax(1, keepdim=True)
    least = advantages.masked_fill(~used, torch.inf).amin(1, keepdim=True)
    return most > least


def sft_objective(v: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """w mean((v - target)^2) per row (B,), the loss of pretraining, and diagnostics; v and target
    (B, ...) float32, target = noise - x_0, w = `weights` (B,)."""
    error = mean_square(v, target)
    return weights * error, {"matching_error": error.detach()}
