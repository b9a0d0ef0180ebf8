"""The second-order ODE sampler against the published trainers' own steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flow_trainer.algorithm.dynamics import euler
from flow_trainer.algorithm.solver import OdeSolver

FOLDER = Path(__file__).parents[2] / "golden" / "objectives"
CASES = json.loads((FOLDER / "ode2.json").read_text())["cases"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "ode2.safetensors")


def velocity(case: dict[str, Any], c: Tensor) -> Callable[[Tensor, float], Tensor]:
    a, b, k = (case["params"][name] for name in "abk")
    return {
        "linear": lambda x, t: a * x + b * t + c,
        "point": lambda x, t: (x - c) / t,
        "sine": lambda x, t: k * torch.sin(x) + b * t * t * c,
    }[case["velocity"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_steps_are_those_of_the_original(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    z, c = (tensors[f"in/{case['input']}/{name}"] for name in "zc")
    field = velocity(case, c)
    solver = OdeSolver({"dpm1": 1, "dpm2": 2}[case["solver"]])
    expected = tensors[f"traj/{case['id']}"]
    x, sigmas = z, case["sigmas"]
    for i in range(len(sigmas) - 1):
        torch.testing.assert_close(x, expected[i], atol=1e-5, rtol=1e-5)
        x = solver.step(x, field(x, sigmas[i]), sigmas[i], sigmas[i + 1])
    torch.testing.assert_close(x, expected[-1], atol=1e-5, rtol=1e-5)


def test_second_order_gains_accuracy() -> None:
    """v = x in reversed time: x(0) = x(1) exp(-1)."""
    errors = {}
    for order in (1, 2):
        solver, x = OdeSolver(order), torch.ones(1, dtype=torch.float32)
        sigmas = torch.linspace(1, 0, 41).tolist()
        for i in range(40):
            x = solver.step(x, x, sigmas[i], sigmas[i + 1])
        errors[order] = abs(float(x) - 0.36787944)
    assert errors[2] < errors[1] / 5


def test_first_order_is_euler() -> None:
    x, v = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(OdeSolver(1).step(x, v, 0.7, 0.5), euler(x, v, 0.7, 0.5))
