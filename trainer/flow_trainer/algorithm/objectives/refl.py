"""ReFL: up the gradient of a differentiable reward, through the decoder and the last step or steps.

ImageReward's reward feedback learning (arXiv 2304.05977): sample without gradient to a random step among
the last ones, predict x_0 there in one step with gradient, and let the reward of the decoded x_0 rise. With
a window of the schedule's last K steps it is DRaFT-K (arXiv 2309.17400).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from flow_trainer.algorithm.advantages import Term


def slopes(
    rewards: Mapping[str, np.ndarray], terms: Mapping[str, Term], used: np.ndarray
) -> dict[str, np.ndarray]:
    """(N,) for every reward: d (weighted sum) / d score of the samples `used` (N,) bool, 0 for others.

    It is the term's weight, and 0 where the score lies outside the term's clip: a reward that is good
    enough pulls no further. So phi(r) = relu(m - r), ImageReward's loss (m = 2), is clip = (least, m), and
    without a clip phi(r) = -r.
    """
    found = {}
    for name, term in terms.items():
        inside = used
        if term.clip is not None:
            least, most = term.clip
            inside = used & (rewards[name] > least) & (rewards[name] < most)
        found[name] = np.where(inside, term.weight, 0.0)
    return found


def refl_objective(
    x_0: Tensor, gradient: Tensor, values: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """-R per row (B,), and diagnostics: its value is that of `values` (B,), the weighted rewards R, and its
    gradient that of -sum(gradient x x_0), where `gradient` (B, C, h, w) = dR / d x_0 was asked for at
    x_0 (B, C, h, w) float32 and counts as constant."""
    linear = (gradient * x_0).flatten(1).sum(1)
    loss = linear.detach() - linear - values
    with torch.no_grad():
        slope = gradient.flatten(1).norm(dim=1)
    return loss, {"policy_loss": loss.detach(), "reward_slope": slope}
