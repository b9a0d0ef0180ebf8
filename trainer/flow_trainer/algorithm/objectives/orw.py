"""Online reward-weighted regression: all samples are trained on, the better ones more.

A baseline of the Flow-GRPO paper (arXiv 2505.05470, appendix), after Peters and Schaal (2007) and, for
flow matching, arXiv 2502.06061: weights exp(tau r). Here they are normalised in their group, as the
paper's offline form of it (Flow-RWR) does, so that a prompt with high rewards does not outweigh the
others. The Wasserstein term of arXiv 2502.06061 bounds mean((v - v_ref)^2): that is update.kl =
"velocity".
"""

from __future__ import annotations

import torch
from torch import Tensor


def reward_weights(advantages: Tensor, used: Tensor, *, temperature: float) -> Tensor:
    """(P, G): exp(tau A) over its mean in the group's used samples, tau = `temperature`; 0 for others.

    With advantage.std = "none" A is the reward less a constant of the group, which cancels.
    """
    logits = (temperature * advantages).masked_fill(~used, -torch.inf)
    share = torch.softmax(logits, 1).nan_to_num(0.0)  # a group without any used sample
    return share * used.sum(1, keepdim=True)
