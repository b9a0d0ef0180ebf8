"""CRD (arXiv 2603.14128): the policy's implied reward is regressed to the real one, both centred in
their group. The rules are those of Flow-Factory, which centres over a micro-batch, whatever the
prompts in it; here over a prompt's samples, as the paper has it. Its weights of the centring
(weight_temp) and its cross-entropy are left out."""

from __future__ import annotations

from torch import Tensor

from flow_trainer.algorithm.objectives.matching import Noised, group_means

MIN_ERROR = 1e-5
MIN_KL = 1e-4
"""Least weight of the KL term, for the worst sample."""


def crd_objective(
    step: Noised, advantages: Tensor, *, strength: float, advantage_clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """(c / b) (b (r - mean r) - (q - mean q))^2 per row, b = `strength`, c = `advantage_clip`.

    r = error(v_old) - error(v) is the reward that the policy's change implies, an error being
    mean((v - target)^2) over its own detached mean absolute; q = A / (2 c) + 1/2 within [0, 1]. Means
    are over the used rows of a group, and constants. Needs whole groups.
    """
    if step.group is None:
        raise ValueError("CRD needs to know the groups of its rows")
    r = _error(step, step.v_old.detach()) - _error(step, step.v)
    q = optimality(advantages, advantage_clip)
    implied = strength * (r - group_means(r.detach(), step.group, step.used))
    wanted = q - group_means(q, step.group, step.used)
    loss = advantage_clip / strength * (implied - wanted) ** 2
    return loss, {"policy_loss": loss.detach(), "implied_reward": r.detach()}


def kl_weight(advantages: Tensor, advantage_clip: float, beta: float) -> Tensor:
    """(B,) weight of the KL term: beta for the best sample, MIN_KL for the worst (or beta, if less)."""
    least = min(MIN_KL / beta, 1.0)
    return beta * (least + optimality(advantages, advantage_clip) * (1 - least))


def optimality(advantages: Tensor, advantage_clip: float) -> Tensor:
    """(B,): A from [-c, c] to [0, 1]."""
    return (advantages / advantage_clip).clamp(-1, 1) / 2 + 0.5


def _error(step: Noised, v: Tensor) -> Tensor:
    error = (v - step.target).flatten(1)
    scale = error.detach().double().abs().mean(1).clamp(min=MIN_ERROR)
    return (error**2).mean(1) / scale.to(error.dtype)
