"""Runs of several processes, and what they left compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ranks
from flow_trainer.record.tensor_files import read_tensors

KINDS = ("weights", "ema", "optimizer")


def run(size: int, data: dict[str, Any], out: Path, resume: bool = False, **options: Any) -> Path:
    assert ranks.start(size, ranks.train, data, out, resume, **options).wait() == [0] * size
    return out


def resumed(size: int, data: dict[str, Any], source: Path, out: Path) -> Path:
    """A copy of a run as it was after its first epoch, continued to its end."""
    shutil.copytree(source, out)
    shutil.rmtree(out / "checkpoints" / "epoch_00002")
    return run(size, data, out, resume=True)


def state(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"epoch_{epoch:05d}"
    return {f"{k}/{n}": v for k in KINDS for n, v in read_tensors(folder / k).items()}


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Without what the machine makes of it: times, rates, memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = re.compile("_s$|_per_second$|tflops|memory|in_flight")
    return [
        {k: v for k, v in row.items() if k != "kind" and not timed.search(k)}
        for row in rows
        if row["kind"] == kind
    ]


def audit(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]


def assert_identical(a: Path, b: Path, epoch: int) -> None:
    left, right = state(a, epoch), state(b, epoch)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_close(a: Path, b: Path, epoch: int, data: dict[str, Any]) -> None:
    """Equal up to the order in which float32 gradients are added: 1e-7 of a gradient, which AdamW
    turns into steps of about the learning rate whatever its size. So weights agree to a small part of
    the learning rate, here 1 % (found: 0.01 %); what small differences of log-probabilities are
    averaged to agrees to a tenth of a percent."""
    left, right = state(a, epoch), state(b, epoch)
    assert left.keys() == right.keys()
    rate = data["update"]["learning_rate"]
    for name in left:
        if name.startswith(("weights/", "ema/")):
            torch.testing.assert_close(left[name], right[name], atol=rate / 100, rtol=0)
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-3, abs=1e-7), key
