"""Flow-DPO: of two samples of a prompt, towards the better one's flow and away from the worse one's.

arXiv 2501.13918 with its constant beta, after Diffusion-DPO (arXiv 2311.12908); online, on the best and
the worst of a group, a baseline of the Flow-GRPO paper (arXiv 2505.05470, appendix).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flow_trainer.algorithm.objectives.matching import mean_square
from flow_trainer.algorithm.objectives.sft import best_of_group


def best_and_worst(advantages: Tensor, used: Tensor) -> Tensor:
    """(P, G): 1 for the best used sample of each group, -1 for the worst, 0 for the others, and where
    a group's samples are all as good."""
    return best_of_group(advantages, used) - best_of_group(-advantages, used)


def dpo_objective(
    v: Tensor, v_ref: Tensor, target: Tensor, signs: Tensor, pairs: Tensor, *, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """-log sigmoid(-b/2 [(d - d_ref) of the better - (d - d_ref) of the worse]) per row (B,), and
    diagnostics; d = mean((v - target)^2), d_ref that of `v_ref`, target = noise - x_0, b = `beta`.

    `signs` (B,): 1 for the better and -1 for the worse row of a pair, whose two rows have one number in
    `pairs` (B,) int64 from 0, the same noise and the same noise level. Both get their pair's loss.
    """
    gain = signs * (mean_square(v_ref.detach(), target) - mean_square(v, target))
    summed = gain.new_zeros(int(pairs.max()) + 1).index_add(0, pairs, gain)
    margin = beta / 2 * summed[pairs]
    loss = -logsigmoid(margin)
    with torch.no_grad():
        diagnostics = {
            "policy_loss": loss.detach(),
            "implied_accuracy": (margin > 0).float(),
            "implied_margin": margin.detach(),
        }
    return loss, diagnostics
