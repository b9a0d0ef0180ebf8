"""Reads the runs of `time_to_score.py`: when each first reached a score, at what cost, and what its images
looked like there; as a table and as curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import Recipe, load_recipe
from flow_trainer.record.diversity import image_diversity
from flow_trainer.record.report import read_metrics
from flow_trainer.record.runlog import GRID_GAP

IMAGES = 4
"""Per held-out prompt, where a run is looked at."""
FALL = 0.15
"""A run that is twice in a row so far below its best has fallen."""


@dataclass(frozen=True, slots=True)
class Point:
    epoch: int
    forwards: float
    """Of the transformer so far, those of evaluations not counted."""
    cpu_s: float
    """Of the trainer's epochs so far; evaluations and reward services are not counted."""
    score: float


@dataclass(frozen=True, slots=True)
class Look:
    """What a checkpoint's images are: all held-out prompts, IMAGES each."""

    score: float
    diversity: float
    """See `flow_trainer.record.diversity`."""
    kilobytes: float
    """As JPEG of quality 95: the monitor, which no run is trained on. Texture and noise make it more, flat
    pictures less."""


@dataclass(frozen=True, slots=True)
class Reached:
    point: Point
    look: Look


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    forwards_per_image: int
    ended: str
    """reached, budget, fell or failed."""
    curve: list[Point]
    reached: dict[float, Reached]
    """By threshold; those that were not reached are missing."""

    @property
    def best(self) -> float:
        return max((point.score for point in self.curve), default=0.0)


Outcomes = Mapping[str, Sequence[Outcome]]


def validations(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics so far that are about held-out words."""
    if not (folder / "metrics.jsonl").exists():
        return []
    return [row for row in read_metrics(folder) if row["kind"] == "validation"]


def ends(scores: Sequence[float], thresholds: Sequence[float]) -> str | None:
    """Why a run with these held-out scores need not go on; None when it should."""
    if max(scores, default=0.0) >= max(thresholds):
        return "reached"
    if len(scores) > 2 and max(scores[-2:]) < max(scores) - FALL:
        return "fell"
    return None


def first_epochs(folder: Path, thresholds: Sequence[float]) -> dict[float, int]:
    """The first evaluated epoch at or above each threshold that was reached."""
    rows = validations(folder)
    return {
        threshold: next(row["epoch"] for row in rows if row["score"] >= threshold)
        for threshold in thresholds
        if any(row["score"] >= threshold for row in rows)
    }


def look_folder(run: Path, epoch: int) -> Path:
    return run / "looks" / f"epoch_{epoch:05d}"


def is_looked_at(folder: Path) -> bool:
    return (folder / "images.png").exists()  # what an evaluation writes last


def read_look(folder: Path, recipe: Recipe) -> Look:
    summary = json.loads((folder / "summary.json").read_text())
    images = cut_grid(
        np.asarray(Image.open(folder / "images.png").convert("RGB")),
        (recipe.model.height, recipe.model.width),
        summary["images"],
    )
    prompts = [str(row // IMAGES) for row in range(len(images))]
    return Look(
        summary["score"], image_diversity(images, prompts), summary["jpeg.incompressibility_kb"]
    )


def cut_grid(grid: np.ndarray, side: tuple[int, int], count: int) -> np.ndarray:
    """The first `count` images (count, H, W, 3) of a picture that `runlog.image_grid` made."""
    height, width = side
    columns = (grid.shape[1] - GRID_GAP) // (width + GRID_GAP)
    corners = [
        (GRID_GAP + i // columns * (height + GRID_GAP), GRID_GAP + i % columns * (width + GRID_GAP))
        for i in range(count)
    ]
    return np.stack([grid[top : top + height, left : left + width] for top, left in corners])


def read_outcome(
    folder: Path, thresholds: Sequence[float], ended: str, *, looked: bool = True
) -> Outcome:
    """Of the folder of a run that has ended so; `looked`: its checkpoints at the thresholds were
    evaluated."""
    recipe = load_recipe(folder / "recipe.json")
    per_image = forwards(recipe).total
    curve: list[Point] = []
    cpu_s = 0.0
    for row in read_metrics(folder):
        if row["kind"] == "train":
            cpu_s += row["epoch_cpu_s"]
        elif row["kind"] == "validation":
            done = row["epoch"] * recipe.images_per_epoch * per_image
            curve.append(Point(row["epoch"], done, cpu_s, row["score"]))
    by_epoch = {point.epoch: point for point in curve}
    return Outcome(
        seed=recipe.seed,
        forwards_per_image=per_image,
        ended=ended,
        curve=curve,
        reached={
            threshold: Reached(by_epoch[epoch], read_look(look_folder(folder, epoch), recipe))
            for threshold, epoch in first_epochs(folder, thresholds).items()
        }
        if looked
        else {},
    )


def table(outcomes: Outcomes, base: Sequence[Look], thresholds: Sequence[float]) -> str:
    """Markdown; a row per objective: CPU seconds and thousands of forwards to each threshold, median and
    range over the seeds that reached it; then what the images are at the highest one reached."""
    header = ["objective", "F per image"]
    header += [f"to {t:.2f}: CPU, s; thousand forwards" for t in thresholds]
    header += ["best, by seed", "at the highest reached: diversity", "kB as JPEG"]
    lines = [f"| {' | '.join(header)} |", "|---|---:|" + "---|" * (len(header) - 2)]
    if base:
        untrained = [f"{median(look.score for look in base):.3f}", *_looked(base)]
        lines.append(f"| untrained | – | {'– | ' * len(thresholds)}{' | '.join(untrained)} |")
    for name, runs in outcomes.items():
        cells = [name, f"{runs[0].forwards_per_image}" if runs else "–"]
        cells += [_cost(runs, threshold) for threshold in thresholds]
        cells.append(", ".join(f"{run.seed}: {_best(run)}" for run in runs) or "–")
        highest = [r.reached[max(r.reached)].look for r in runs if r.reached]
        cells += _looked(highest) if highest else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(run: Outcome) -> str:
    return f"{run.best:.3f}" + (f" ({run.ended})" if run.ended in ("fell", "failed") else "")


def _cost(runs: Sequence[Outcome], threshold: float) -> str:
    points = [run.reached[threshold].point for run in runs if threshold in run.reached]
    if not points:
        return f"0 of {len(runs)}" if runs else "–"
    share = "" if len(points) == len(runs) else f"{len(points)} of {len(runs)}: "
    cpu = _range([point.cpu_s for point in points])
    return f"{share}{cpu}; {_range([point.forwards / 1000 for point in points])}"


def _looked(looks: Sequence[Look]) -> list[str]:
    return [
        _range([look.diversity for look in looks], 3),
        _range([look.kilobytes for look in looks], 2),
    ]


def _range(values: Sequence[float], digits: int = 0) -> str:
    middle = f"{median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def draw(outcomes: Outcomes, path: Path, thresholds: Sequence[float]) -> None:
    """Held-out score against CPU seconds, a thin line per seed, and the CPU seconds to every threshold, a
    point per seed. The format follows the suffix of `path`."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    names = [name for name, runs in outcomes.items() if runs]
    for place, name in enumerate(names):
        color = colors[place % len(colors)]
        for number, run in enumerate(outcomes[name]):
            label = name if number == 0 else None
            cpu, score = zip(*[(p.cpu_s, p.score) for p in run.curve], strict=True)
            left.plot(cpu, score, color=color, linewidth=1.0, alpha=0.8, label=label)
            for threshold, marker in zip(thresholds, ("o", "s", "^"), strict=False):
                if threshold in run.reached:
                    at = run.reached[threshold].point.cpu_s
                    right.plot(at, place, marker, color=color, markersize=5)
    left.set_ylabel("held-out score")
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set_title("first at " + ", ".join(f"{t:.2f}" for t in thresholds), fontsize=9)
    for axes in (left, right):
        axes.set_xlabel("CPU seconds of training")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if names:
        left.legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)
