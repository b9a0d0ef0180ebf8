"""On-policy distillation (Flow-OPD, arXiv 2605.08063; the direct form of verl-omni and UniRL): the
student's steps, on its own trajectories, are pulled to a teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_trainer.algorithm.dynamics import Transition


def opd_objective(student: Transition, teacher: Transition) -> tuple[Tensor, dict[str, Tensor]]:
    """(B,): KL divergence of the student's step from the teacher's, mean((mu - mu_T)^2) / (2 std^2).

    Both are Gaussian with the std of the whole step, sqrt(D) included, which verl-omni leaves out for
    its SDE. A step without noise counts as if its std were 1, as in UniRL. Flow-OPD itself takes the
    negative divergence as a reward of each step in a clipped policy gradient.
    """
    square = (student.mean - teacher.mean.detach()) ** 2
    std = torch.where(student.std > 0, student.std, 1.0)
    loss = (square / (2 * std**2)).flatten(1).mean(1)
    return loss, {"policy_loss": loss.detach()}
