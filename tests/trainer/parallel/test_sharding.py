"""What travels between ranks that share parameters, when, and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ranks
from rank_checks import TURNS, compare_pieces, count_travel, save_gradients
from rank_runs import run, state
from tiny_pipelines import MODELS, build

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BLOCKS = 2
"""Of the minuscule model. What is outside of them is one more group of parameters, without an adapter."""


@pytest.fixture
def half(brief: dict[str, Any]) -> dict[str, Any]:
    """One update, in autocast: several backwards to each rank."""
    brief["model"] |= {"autocast_on_cpu": True}
    brief["sampling"] |= {"prompts_per_epoch": 2, "micro_batch": 2}
    brief["update"] |= {"kl": "none", "beta": 0.0, "updates_per_epoch": 1}
    return brief | {"epochs": 1}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_parameters_that_travel_in_16_bits_train_the_same(
    half: dict[str, Any], tuning: str, dtype: str, tmp_path: Path
) -> None:
    """Masters, averages and moments stay float32, and float16's loss scale is one process's."""
    half["model"] |= {"tuning": tuning, "dtype": dtype}
    half["parallel"] = {"sharding": "full"}
    one, two = (run(n, half, tmp_path / str(n)) for n in (1, 2))
    left, right = state(one, 1), state(two, 1)
    weights = [name for name in left if name.startswith(("weights/", "ema/"))]
    apart = torch.cat([(left[name] - right[name]).abs().flatten() for name in weights])
    rate = half["update"]["learning_rate"]
    # AdamW makes a step of a gradient that is noise of 16 bits; see the next test for gradients
    assert (apart > rate / 100).float().mean() < (0.01 if tuning == "full" else 1e-9)
    assert {v.dtype for name, v in right.items() if "step" not in name} == {torch.float32}
    scales = [
        json.loads((r / "checkpoints/epoch_00001/state.json").read_text())["loss_scale"]
        for r in (one, two)
    ]
    assert scales[0] == scales[1]
    assert (scales[0]["value"] > 1) == (dtype == "float16")


def test_gradients_of_16_bits_are_those_of_one_process(
    half: dict[str, Any], tmp_path: Path
) -> None:
    """A block's linear layers have the very same. A norm's weight is rounded to 16 bits here and not
    there; what the blocks all read adds up their gradients in another order, in 16 bits."""
    half["model"] |= {"tuning": "full", "dtype": "bfloat16"}
    files = [tmp_path / f"{n}.safetensors" for n in (1, 2)]
    for n, file in enumerate(files, 1):
        assert ranks.start(n, save_gradients, half, "full", file).wait() == [0] * n
    one, two = (load_file(file) for file in files)
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        exact = "blocks" in name and "attn.norm" not in name
        part = 1e-6 if exact else 0.02
        torch.testing.assert_close(
            two[name], gradient, atol=part * float(gradient.abs().max()), rtol=0
        )


@pytest.mark.parametrize(("tuning", "reduced"), [("lora", BLOCKS), ("full", TURNS * (BLOCKS + 1))])
def test_gradients_travel_in_float32_and_no_oftener_than_they_must(
    half: dict[str, Any], tuning: str, reduced: int, tmp_path: Path
) -> None:
    half["model"] |= {"tuning": tuning, "dtype": "bfloat16"}
    assert ranks.start(2, count_travel, half, "full", tmp_path).wait() == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"travel-{rank}.json").read_text())
        assert found["gathered"] == ["torch.bfloat16"]
        assert found["reduced"] == ["torch.float32"]
        assert found["reductions"] == reduced


def test_nodes_add_their_gradients_once_per_update(half: dict[str, Any], tmp_path: Path) -> None:
    half["model"] |= {"tuning": "full", "dtype": "bfloat16"}
    started = ranks.start(4, count_travel, half, "hybrid", tmp_path, local_size=2)
    assert started.wait() == [0] * 4
    for rank in range(4):
        found = json.loads((tmp_path / f"travel-{rank}.json").read_text())
        assert found["reductions"] == TURNS * (BLOCKS + 1)
        assert found["summed over nodes"] == BLOCKS + 1


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("family", MODELS)
def test_every_rank_reads_its_own_rows(family: str, tuning: str, tmp_path: Path) -> None:
    """On three ranks, which nothing divides evenly."""
    model = {"family": family, "path": str(build(family, tmp_path)), "height": 8, "width": 8}
    model |= MODELS[family] | {"tuning": tuning, "dtype": "bfloat16", "autocast_on_cpu": True}
    assert ranks.start(3, compare_pieces, model, tmp_path).wait() == [0] * 3
    assert len(list(tmp_path.glob("done-*"))) == 3
