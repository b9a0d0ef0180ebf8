"""A training of the minuscule model, and what two runs of it must have in common to be the same run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parts  # noqa: F401  puts tests/support on the path
import torch
from safetensors.torch import load_file

import ranks
from processes import BRIGHTNESS, Services
from recipes import write_recipe
from tiny_pipelines import build

EPOCHS = 4
_VOLATILE = re.compile("_s$|_per_second$|_tflops$|_memory_gb$|_in_flight$|_fraction$")
_FINISH_S = 240


@dataclass(frozen=True)
class Bench:
    """A recipe beside the service that scores it."""

    folder: Path
    recipe: Path

    def train(self, out: Path, *flags: str) -> tuple[int | None, str]:
        """`flow-grpo train` in a process of its own: its exit status, and what it printed."""
        arguments = ["train", str(self.recipe), "--out", str(out), *flags]
        log = out.with_suffix(".log")
        started = ranks.start(1, ranks.command, arguments, log)
        (status,) = started.wait(_FINISH_S)
        return status, log.read_text() if log.exists() else ""


@contextmanager
def training_bench(folder: Path) -> Iterator[Bench]:
    services = Services(folder, log=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("red\ngreen\nblue\nblack\nwhite\n")
    try:
        service = services.start(BRIGHTNESS)
        recipe = write_recipe(folder, _data(build("sd3", folder), prompts, service.http))
        yield Bench(folder, recipe)
    finally:
        services.stop()


def _data(pipeline: Path, prompts: Path, url: str) -> dict[str, Any]:
    size = {"height": 8, "width": 8, "max_sequence_length": 0}
    return {
        "name": "soak",
        "seed": 3,
        "epochs": EPOCHS,
        "device": "cpu",
        "model": {"path": str(pipeline), "guidance": 1.0, "tuning": "full", **size},
        "prompts": {key: str(prompts) for key in ("train", "validation", "heldout")},
        "sampling": {"num_steps": 4, "prompts_per_epoch": 2, "group_size": 4, "micro_batch": 4},
        "rewards": {"brightness": {"url": url}},
        "scoring": {"timeout_s": 60},
        "update": {"learning_rate": 1e-3, "clip_range": 1e-3},
        "ema": {"interval": 1},
        "evaluation": {"every": 2, "num_steps": 4},
        "checkpoints": {"every": 1, "keep": 2},
        "logging": {"tensorboard": False, "image_every": 0},
    }


def differences(run: Path, whole: Path) -> list[str]:
    """What an undisturbed run has otherwise: weights, moments, averages, the best ones, and every row of
    the logs but their clocks."""
    found = []
    for name in (f"checkpoints/epoch_{EPOCHS:05d}", "best"):
        for file in sorted((whole / name).glob("*.safetensors")):
            other = run / name / file.name
            if not other.exists() or not _equal(file, other):
                found.append(f"{name}/{file.name}")
    if (run / "audit.jsonl").read_bytes() != (whole / "audit.jsonl").read_bytes():
        found.append("audit.jsonl")
    if _rows(run) != _rows(whole):
        found.append("metrics.jsonl")
    return found


def _equal(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not _VOLATILE.search(k)} for row in rows]
