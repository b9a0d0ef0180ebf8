"""A run whose network computes in float16 (a CPU's autocast): it climbs as in float32, and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flow_trainer.loop.train import train
from flow_trainer.loop.updates import loss_scale
from flow_trainer.recipe import parse_recipe
from processes import Service

pytestmark = pytest.mark.system


def settings(data: dict[str, Any], reward: Service, dtype: str, epochs: int) -> dict[str, Any]:
    return data | {
        "epochs": epochs,
        "rewards": {"brightness": {"url": reward.http}},
        "model": data["model"] | {"dtype": dtype, "autocast_on_cpu": True},
        "sampling": data["sampling"] | {"prompts_per_epoch": 4, "group_size": 8, "micro_batch": 16},
        "update": {"learning_rate": 1e-2, "clip_range": 1e-3},
    }


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == "train"]


def test_float16_climbs_like_float32(
    brightness: Service, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    gains = []
    for dtype in ("float32", "float16"):
        train(parse_recipe(settings(recipe_data, brightness, dtype, 12)), tmp_path / dtype)
        rewards = [row["reward"] for row in rows(tmp_path / dtype)]
        gains.append(sum(rewards[-4:]) / 4 - sum(rewards[:4]) / 4)
    # one standard deviation inside a group is 0.0075
    assert gains[0] > 0.01
    assert gains[1] == pytest.approx(gains[0], rel=0.2)
    half = rows(tmp_path / "float16")
    assert all(row["skipped_updates"] == 0 and row["loss_scale"] > 1 for row in half)
    assert max(row["ratio_error"] for row in half) < 1e-4
    assert "loss_scale" not in rows(tmp_path / "float32")[0]


def test_a_run_with_overflows_resumes_bit_for_bit(
    brightness: Service,
    recipe_data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # three updates too high: it resumes between two overflows
    monkeypatch.setattr(loss_scale, "ELEMENT_GRADIENT", 2.0**14)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(parse_recipe(settings(recipe_data, brightness, "float16", 5)), whole)
    train(parse_recipe(settings(recipe_data, brightness, "float16", 1)), parts)
    train(parse_recipe(settings(recipe_data, brightness, "float16", 5)), parts, resume=True)
    skipped = [row["skipped_updates"] for row in rows(whole)]
    assert skipped[0] == 2
    assert skipped[1] > 0
    assert rows(whole)[0]["grad_norm"] is None
    assert 0 < rows(whole)[-1]["updates"] == 10 - sum(skipped)
    assert "a float16 gradient overflowed: 2 of 2 updates skipped" in " ".join(
        capsys.readouterr().err.split()
    )
    for name in ("weights", "ema", "optimizer"):
        left, right = (
            load_file(run / "checkpoints" / "epoch_00005" / f"{name}.safetensors")
            for run in (whole, parts)
        )
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == []
    scales = [
        [(r["loss_scale"], r["skipped_updates"]) for r in rows(run)] for run in (whole, parts)
    ]
    assert scales[0] == scales[1]
