"""Reads the runs of `time_to_score.py`: when each first reached a score, at what cost, and what its images
looked like there; as a table and as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe
from flow_trainer.record.report import read_metrics

EVALUATED = ("heldout_before", "validation")
"""Rows of a run's metrics about the same words: of the untrained model, and along the training."""
FALL = 0.15
"""A run that is twice in a row so far below its best has fallen."""
STALL = 6
"""A run that has no new best for so many evaluations has stalled."""
COLUMNS = 5
"""Of the picture's panels."""


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation on the held-out words; epoch 0 is the untrained model."""

    epoch: int
    forwards: float
    """Of the transformer so far, those of evaluations not counted."""
    cpu_s: float
    """Of the trainer's epochs so far; evaluations and reward services are not counted."""
    score: float
    diversity: float
    """See `flow_trainer.record.diversity`."""
    kilobytes: float
    """As JPEG of quality 95: the monitor, which no run is trained on. Texture and noise make it more, flat
    pictures less."""


@dataclass(frozen=True, slots=True)
class Outcome:
    seed: int
    forwards_per_image: int
    ended: str
    """reached, budget, stalled or fell."""
    curve: list[Point]
    """From the untrained model on."""

    def first(self, threshold: float) -> Point | None:
        """At or above the threshold."""
        return next((point for point in self.curve if point.score >= threshold), None)

    @property
    def best(self) -> float:
        return max(point.score for point in self.curve)


Outcomes = Mapping[str, Sequence[Outcome]]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics so far that are about the held-out words, the untrained model's first."""
    if not (folder / "metrics.jsonl").exists():
        return []
    return [row for row in read_metrics(folder) if row["kind"] in EVALUATED]


def ends(scores: Sequence[float], thresholds: Sequence[float]) -> str | None:
    """Why a run with these held-out scores need not go on; None when it should."""
    best = max(scores, default=0.0)
    if best >= max(thresholds):
        return "reached"
    if len(scores) > 2 and max(scores[-2:]) < best - FALL:
        return "fell"
    return "stalled" if best not in scores[-STALL:] and len(scores) > STALL else None


def read_outcome(folder: Path, ended: str) -> Outcome:
    """Of the folder of a run that has ended so."""
    recipe = load_recipe(folder / "recipe.json")
    per_image = forwards(recipe).total
    curve: list[Point] = []
    cpu_s = 0.0
    for row in read_metrics(folder):
        if row["kind"] == "train":
            cpu_s += row["epoch_cpu_s"]
        elif row["kind"] in EVALUATED:
            done = row["epoch"] * recipe.images_per_epoch * per_image
            seen = (row["image_diversity"], row["jpeg.incompressibility_kb"])
            curve.append(Point(row["epoch"], done, cpu_s, row["score"], *seen))
    return Outcome(recipe.seed, per_image, ended, curve)


def table(outcomes: Outcomes, thresholds: Sequence[float]) -> str:
    """Markdown; a row per objective: CPU seconds and thousands of forwards to each threshold, median and
    range over the seeds that reached it; then what the images are at the highest one reached."""
    header = ["objective", "F per image"]
    header += [f"to {t:.2f}: CPU, s; thousand forwards" for t in thresholds]
    header += ["best, by seed", "at the highest reached: diversity", "kB as JPEG"]
    lines = [f"| {' | '.join(header)} |", "|---|---:|" + "---|" * (len(header) - 2)]
    # they are the same for every objective
    base = [run.curve[0] for run in next(filter(None, outcomes.values()), [])]
    if base:
        untrained = [f"{median(point.score for point in base):.3f}", *_seen(base)]
        lines.append(f"| untrained | – | {'– | ' * len(thresholds)}{' | '.join(untrained)} |")
    for name, runs in outcomes.items():
        cells = [name, f"{runs[0].forwards_per_image}" if runs else "–"]
        cells += [_cost(runs, threshold) for threshold in thresholds]
        cells.append(", ".join(f"{run.seed}: {_best(run)}" for run in runs) or "–")
        firsts = ([run.first(threshold) for threshold in thresholds] for run in runs)
        highest = [reached[-1] for of in firsts if (reached := [p for p in of if p is not None])]
        cells += _seen(highest) if highest else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(run: Outcome) -> str:
    return f"{run.best:.3f}" + (f" ({run.ended})" if run.ended in ("stalled", "fell") else "")


def _cost(runs: Sequence[Outcome], threshold: float) -> str:
    points = [point for run in runs if (point := run.first(threshold)) is not None]
    if not points:
        return f"0 of {len(runs)}" if runs else "–"
    share = "" if len(points) == len(runs) else f"{len(points)} of {len(runs)}: "
    cpu = _range([point.cpu_s for point in points])
    return f"{share}{cpu}; {_range([point.forwards / 1000 for point in points])}"


def _seen(points: Sequence[Point]) -> list[str]:
    return [
        _range([point.diversity for point in points], 3),
        _range([point.kilobytes for point in points], 2),
    ]


def _range(values: Sequence[float], digits: int = 0) -> str:
    middle = f"{median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def draw(outcomes: Outcomes, path: Path, thresholds: Sequence[float]) -> None:
    """Held-out score against CPU seconds, a panel per objective and a line per seed, with the others' lines
    in grey behind them. The format follows the suffix of `path`."""
    from matplotlib.figure import Figure

    finished = {name: runs for name, runs in outcomes.items() if runs}
    rows = max(1, -(-len(finished) // COLUMNS))
    figure = Figure(figsize=(12, 0.7 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(finished) :]:
        axes.set_visible(False)
    everything = [run for runs in finished.values() for run in runs]
    for axes, (name, runs) in zip(grid.flat, finished.items(), strict=False):
        for run in everything:
            axes.plot(*_costs_and_scores(run), color="0.85", linewidth=0.6)
        for threshold in thresholds:
            axes.axhline(threshold, color="0.6", linewidth=0.6, linestyle=":")
        for run in runs:
            axes.plot(*_costs_and_scores(run), color="C0", linewidth=1.4)
            first = (run.first(threshold) for threshold in thresholds)
            for point in (point for point in first if point is not None):
                axes.plot(point.cpu_s, point.score, "o", color="C0", markersize=3.5)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("CPU seconds of training", fontsize=10)
    figure.supylabel("held-out score", fontsize=10)
    figure.savefig(path, dpi=110)


def _costs_and_scores(run: Outcome) -> tuple[list[float], list[float]]:
    return [point.cpu_s for point in run.curve], [point.score for point in run.curve]
