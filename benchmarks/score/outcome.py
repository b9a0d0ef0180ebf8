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
                if (point := run.first(threshold)) is not None:
                    right.plot(point.cpu_s, place, marker, color=color, markersize=5)
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
