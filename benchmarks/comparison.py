"""Reads the runs of `compare_algorithms.py`: what each reached and cost, as a table and as curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe
from flow_trainer.record.diversity import image_diversity
from flow_trainer.record.report import charts, read_metrics
from flow_trainer.record.report.series import joined


@dataclass(frozen=True, slots=True)
class Point:
    """A validation during training."""

    forwards: float
    """Transformer forwards so far, those of evaluations not counted."""
    cpu_s: float
    """CPU seconds of the trainer's epochs so far, evaluations and reward service not counted."""
    score: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run."""

    seed: int
    epochs: int
    forwards_per_image: int
    before: float
    after: float
    """Mean held-out score."""
    diversity_before: float
    diversity_after: float
    wall_s: float
    cpu_s: float
    curve: list[Point]


Outcomes = Mapping[str, Sequence[Outcome]]
"""Finished runs by the variant's name; a variant may have none."""


def read_outcome(run: Path, base_score: float) -> Outcome:
    """Reads a run folder; `base_score` is the untrained model's on the validation prompts."""
    recipe = load_recipe(run / "recipe.json")
    summary = json.loads((run / "summary.json").read_text())
    per_image = forwards(recipe).total
    curve = [Point(0.0, 0.0, base_score)]
    cpu_s = 0.0
    for row in read_metrics(run):
        if row["kind"] == "train":
            cpu_s += row["epoch_cpu_s"]
        elif row["kind"] == "validation":
            done = row["epoch"] * recipe.images_per_epoch * per_image
            curve.append(Point(done, cpu_s, row["score"]))
    return Outcome(
        seed=summary["seed"],
        epochs=summary["epochs"],
        forwards_per_image=per_image,
        before=summary["heldout_before"],
        after=summary["heldout_after"],
        diversity_before=stored_diversity(run / "heldout" / "before.npz"),
        diversity_after=stored_diversity(run / "heldout" / "after.npz"),
        wall_s=summary["train_wall_seconds"],
        cpu_s=cpu_s,
        curve=curve,
    )


def stored_diversity(path: Path) -> float:
    with np.load(path, allow_pickle=False) as stored:
        return image_diversity(stored["images"], stored["prompts"].tolist())


def table(outcomes: Outcomes) -> str:
    """Markdown; a row per variant, means over its seeds, the held-out scores also one by one."""
    lines = [
        "| variant | forwards per image | epochs | held-out before | after, mean (by seed) "
        "| diversity before | after | CPU, s | wall, s |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, runs in outcomes.items():
        lines.append(f"| {name} | " + " | ".join(_cells(runs)) + " |")
    return "\n".join(lines)


def _cells(runs: Sequence[Outcome]) -> list[str]:
    if not runs:
        return ["–"] * 8
    each = ", ".join(f"{run.seed}: {run.after:.3f}" for run in runs)
    return [
        str(runs[0].forwards_per_image),
        str(runs[0].epochs),
        f"{mean(run.before for run in runs):.3f}",
        f"**{mean(run.after for run in runs):.3f}** ({each})",
        f"{mean(run.diversity_before for run in runs):.3f}",
        f"{mean(run.diversity_after for run in runs):.3f}",
        f"{mean(run.cpu_s for run in runs):.0f}",
        f"{mean(run.wall_s for run in runs):.0f}",
    ]


def draw(outcomes: Outcomes, path: Path) -> None:
    """Validation score against forwards and against CPU seconds, as `flow-grpo report` draws: lines are
    means over the seeds, bands reach from the lowest to the highest. The format follows the suffix of
    `path`."""
    figure, (left, right) = charts.new_axes(
        "transformer forwards", "validation score", width=11, height=4.4, columns=2
    )
    right.set_xlabel("CPU seconds of training")
    for number, (name, runs) in enumerate(outcomes.items()):
        for axes, x in ((left, "forwards"), (right, "cpu_s")):
            if runs:
                curve = joined([_xy(run, x) for run in runs])
                charts.draw_curve(axes, curve, charts.Look(number), label=name)
    left.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k" if value else "0")
    for axes in (left, right):
        axes.set_xlim(left=0)
    left.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _xy(run: Outcome, x: str) -> np.ndarray:
    """(2, points)"""
    return np.array([[getattr(point, x), point.score] for point in run.curve]).T
