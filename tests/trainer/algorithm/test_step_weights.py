"""Weights of the denoising steps against the published trainers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.algorithm.step_weights import flash_weights, noise_weights, step_stds

FILE = Path(__file__).parents[2] / "golden" / "objectives" / "step_weights.json"
CASES = json.loads(FILE.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_weights_are_those_of_the_original(case: dict[str, Any]) -> None:
    sigmas = torch.tensor(case["sigmas"])
    if case["kind"] == "tempflow":
        weights = noise_weights(step_stds("flow_sde", sigmas, case["eta"]))
        expected = torch.tensor(case["weights"]) * 2.25 / case["weight_scale"]
        torch.testing.assert_close(weights, expected, atol=5e-6, rtol=1e-5)
        return
    pool = range(case["pool"][0], case["pool"][-1] + 1)
    weights = flash_weights(step_stds("flash_sde", sigmas, case["eta"]), sigmas, pool)
    expected = torch.tensor(case["row_weights"])
    torch.testing.assert_close(weights[case["rows"]], expected, atol=5e-6, rtol=1e-5)
