"""Distillation against the published trainers' own losses: value and gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flow_trainer.algorithm.dynamics import Transition
from flow_trainer.algorithm.objectives.opd import opd_objective

FOLDER = Path(__file__).parents[2] / "golden" / "objectives"
CASES = json.loads((FOLDER / "opd.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "opd.safetensors")


def of(kind: str) -> list[dict[str, Any]]:
    return [case for case in CASES if case["kind"] == kind]


def divergence(student: Tensor, teacher: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) and the student's mean, which collects gradients."""
    mean = student.clone().requires_grad_(True)
    std = std.view(-1, *[1] * (mean.ndim - 1))
    loss, _ = opd_objective(Transition(mean, std), Transition(teacher, std))
    return loss, mean


@pytest.mark.parametrize("case", of("verl_distill_kl"), ids=lambda case: case["id"])
def test_gaussian_kl(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    get = {n: tensors[f"{case['id']}/{n}"] for n in ("student_mean", "teacher_mean", "std_dev_t")}
    std, step = get["std_dev_t"].flatten(), torch.tensor(1.0)
    if case["std_kind"].startswith("flow_sde"):
        # theirs leaves out sqrt(D): its loss is the divergence times D
        step = torch.tensor(case["sigma"]) - torch.tensor(case["sigma_next"])
        std = std * torch.sqrt(step)
    loss, mean = divergence(get["student_mean"], get["teacher_mean"], std)
    expected = torch.tensor(case["true_gaussian_kl_per_sample"]).to(loss)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-8, rtol=1e-5)
    (gradient,) = torch.autograd.grad((loss * step).mean(), mean)
    wanted = tensors[f"{case['id']}/grad_wrt_student_mean"]
    atol = 1e-5 * float(wanted.abs().max())
    torch.testing.assert_close(gradient, wanted.to(gradient), atol=atol, rtol=0)


@pytest.mark.parametrize("case", of("unirl_opd"), ids=lambda case: case["id"])
def test_each_step_of_a_trajectory(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    keys = [name for name in tensors if name.startswith(f"{case['id']}/")]
    student = tensors[next(k for k in keys if "student" in k and "grad" not in k)]
    teacher = tensors[next(k for k in keys if "teacher" in k)]
    rows, steps = student.shape[:2]
    std = torch.tensor(case["transition_std"])
    if not case["add_kl_coefficient"]:
        std = torch.zeros_like(std)  # a step without noise
    loss, mean = divergence(student.flatten(0, 1), teacher.flatten(0, 1), std.repeat(rows))
    expected = torch.tensor(case["kl_per_sample_step"])
    torch.testing.assert_close(loss.detach().view(rows, steps), expected, atol=1e-7, rtol=2e-5)
    assert float(loss.detach().mean()) == pytest.approx(case["loss"], rel=2e-5)
    (gradient,) = torch.autograd.grad(loss.mean(), mean)
    wanted = tensors[next(k for k in keys if "grad" in k)].flatten(0, 1)
    atol = 1e-5 * float(wanted.abs().max())
    torch.testing.assert_close(gradient, wanted, atol=atol, rtol=0)
