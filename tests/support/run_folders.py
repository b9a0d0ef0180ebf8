"""Run folders without a training: the files that one leaves, with curves made by a formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flow_trainer.recipe import parse_recipe, save_resolved
from flow_trainer.record.runlog import image_grid

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "epochs": 20,
    "model": {"path": "nowhere"},
    "prompts": {"train": "train.txt"},
    "sampling": {"num_steps": 4, "prompts_per_epoch": 2, "group_size": 4, "micro_batch": 4},
    "rewards": {"ocr": {"url": "http://127.0.0.1:1"}},
    "watch": {"band_epochs": 4},
}
PROMPTS = ("a red cube", "a blue ball", "two green trees")


def make_run(
    folder: Path,
    *,
    seed: int = 1,
    epochs: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    train: Callable[[int], Mapping[str, Any]] = lambda epoch: {},
    validation: Callable[[int], Mapping[str, Any]] = lambda epoch: {},
    alarms: Mapping[int, str] | None = None,
    ended: bool = True,
) -> Path:
    """A run of `epochs` (default: the recipe's). `train` and `validation` give metrics beside or instead
    of those made here; `alarms` are quantities by epoch. `ended`: it has its summary and evaluations."""
    folder.mkdir(parents=True, exist_ok=True)
    parsed = parse_recipe({**RECIPE, **(recipe or {}), "seed": seed})
    save_resolved(parsed, folder / "recipe.json")
    last = parsed.epochs if epochs is None else epochs
    rows: list[dict[str, Any]] = []
    if ended:
        rows.append({"kind": "heldout_before", "epoch": 0, "score": 0.3 + 0.01 * seed})
    for epoch in range(1, last + 1):
        rows.append({"kind": "train", "epoch": epoch, **_train(epoch, seed), **train(epoch)})
        if alarms and epoch in alarms:
            rows.append(alarm(epoch, alarms[epoch]))
        if epoch % 5 == 0:
            score = {"score": _climb(epoch, seed) + 0.02}
            rows.append({"kind": "validation", "epoch": epoch, **score, **validation(epoch)})
    if ended:
        rows.append({"kind": "heldout_after", "epoch": last, "score": 0.7 + 0.01 * seed})
        _summarise(folder, seed, last)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """One line more in the log."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def alarm(epoch: int, quantity: str) -> dict[str, Any]:
    return {
        "kind": "alarm",
        "epoch": epoch,
        "quantity": quantity,
        "value": 0.2,
        "band_low": 0.4,
        "band_high": 0.6,
        "message": f"{quantity} is 0.2, below the 0.4 that its first 4 epochs allow",
    }


def draw_fixed(
    folder: Path, epoch: int, prompts: Sequence[str] = PROMPTS, size: tuple[int, int] = (32, 16)
) -> None:
    """The picture of fixed prompts that a run keeps at an epoch: brighter with every epoch."""
    width, height = size
    shades = np.arange(len(prompts), dtype=np.uint8) * 40 + min(epoch, 100)
    images = np.broadcast_to(shades[:, None, None, None], (len(prompts), height, width, 3))
    said = PngInfo()
    said.add_itxt("prompts", json.dumps(list(prompts)))
    path = folder / "images" / f"fixed_{epoch:05d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image_grid(images, len(prompts))).save(path, pnginfo=said)


def keep_heldout(folder: Path, size: tuple[int, int] = (32, 16), images_each: int = 2) -> None:
    """Black before, white after."""
    width, height = size
    (folder / "heldout").mkdir()
    prompts = np.repeat(PROMPTS, images_each)
    for name, shade in (("before", 0), ("after", 255)):
        np.savez_compressed(
            folder / "heldout" / f"{name}.npz",
            images=np.full((len(prompts), height, width, 3), shade, np.uint8),
            prompts=prompts,
            values=np.linspace(0, 1, len(prompts)),
        )


def _climb(epoch: int, seed: int) -> float:
    return 0.5 + 0.3 * (1 - math.exp(-epoch / 10)) + 0.02 * math.sin(epoch * 1.7 + seed)


def _train(epoch: int, seed: int) -> dict[str, Any]:
    reward = _climb(epoch, seed)
    return {
        "reward": reward,
        "ocr": reward,
        "group_std": 0.1,
        "zero_std_ratio": 0.05,
        "clip_fraction": 0.02,
        "grad_norm": 0.3 + 0.1 * math.cos(epoch + seed),
        "ratio_error": 1e-7,
        "learning_rate": 3e-4,
        "updates": 2 * epoch,
        "window": [0, 3],
        "failed": 0,
        "brightness": 0.5 + 0.01 * math.sin(epoch),
        "saturation": 0.4,
        "diversity": 0.3 - 0.002 * epoch,
        "latent_norm": 1.0,
        "sharpness": 0.1,
        "sample_s": 3.0,
        "reward_wait_s": 0.5,
        "update_s": 4.0,
        "epoch_s": 7.5,
        "images_per_second": 8 / 7.5,
        "peak_memory_gb": 1.5,
    }


def _summarise(folder: Path, seed: int, epochs: int) -> None:
    summary = {
        "seed": seed,
        "epochs": epochs,
        "device": "cpu",
        "rewards": {"ocr": "abc123"},
        "versions": {"torch": "2.13.0"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
