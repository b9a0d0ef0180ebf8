"""The predictor's head: five linear layers with nothing between them, so one affine map."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reward_services.chassis.weights import WeightsError

FILE = "sac+logos+ava1-l14-linearMSE.pth"
SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


@dataclass(frozen=True, slots=True)
class Head:
    """score = weight . feature + bias, in float64."""

    weight: np.ndarray
    """(D,) float64; D = 768 in the published head"""
    bias: float

    def scores(self, features: np.ndarray) -> list[float]:
        """(N, D) image features of unit length -> N scores."""
        return (features.astype(np.float64) @ self.weight + self.bias).tolist()


def check_digest(path: Path, expected: str) -> str:
    """The file's SHA-256. Raises WeightsError unless it is `expected` ("any": whatever it is)."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if expected not in ("any", "") and digest != expected.lower():
        raise WeightsError(
            f"{path.name} is not the expected head: its SHA-256 is {digest}, not {expected}; for "
            "another head set REWARD_AESTHETIC_HEAD_SHA256 to its digest"
        )
    return digest


def load_head(path: Path) -> Head:
    """Raises WeightsError for a file that is no stack of linear layers."""
    import torch

    # The published file holds CUDA tensors.
    state = torch.load(path, map_location="cpu", weights_only=True)
    return fold({name: tensor.double().numpy() for name, tensor in state.items()})


def fold(state: Mapping[str, np.ndarray]) -> Head:
    """`layers.N.weight` (out, in) and `layers.N.bias` (out,) in the order of N -> one affine map."""
    found = (re.fullmatch(r"layers\.(\d+)\.weight", name) for name in state)
    layers = [f"layers.{n}" for n in sorted(int(match[1]) for match in found if match)]
    if not layers or set(state) != {f"{layer}.{p}" for layer in layers for p in ("weight", "bias")}:
        raise WeightsError(f"the head should hold linear layers only, and holds {sorted(state)}")
    weight = np.eye(state[f"{layers[0]}.weight"].shape[1])
    bias = np.zeros(len(weight))
    for layer in layers:
        matrix = state[f"{layer}.weight"]
        if matrix.shape[1] != len(weight):
            raise WeightsError(f"{layer} of the head takes {matrix.shape[1]} numbers")
        weight, bias = matrix @ weight, matrix @ bias + state[f"{layer}.bias"]
    if len(weight) != 1:
        raise WeightsError(f"the head should give one number, and gives {len(weight)}")
    return Head(weight[0], float(bias[0]))
