"""Reads the runs of run.py: task, monitor and diversity of held-out images, as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from flow_trainer.doctor.estimate import forwards
from flow_trainer.evaluation.bootstrap import Interval, interval
from flow_trainer.recipe import load_recipe
from flow_trainer.record.diversity import image_diversity
from flow_trainer.record.report import charts, read_metrics
from flow_trainer.record.report.series import joined
from reward_api import RewardClient

MEASURES = ("task", "monitor", "diversity")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run; P held-out prompts, K images each."""

    forwards_per_image: int
    epochs: int
    before: dict[str, np.ndarray]
    """(P, K) task and monitor scores, (P, 1) diversity, of the untrained model's images."""
    after: dict[str, np.ndarray]
    cpu_s: float
    """Of the trainer's epochs, evaluations and reward service not counted."""
    curve: list[tuple[float, float]]
    """(transformer forwards, validation score), from the first epochs on."""


def score_images(run: Path, url: str) -> None:
    """Writes RUN/monitor.npz: the scores by the service at `url` of the held-out images."""
    found = {}
    with RewardClient(url, on_error="nan") as client:
        for name in ("before", "after"):
            with np.load(run / "heldout" / f"{name}.npz", allow_pickle=False) as stored:
                found[name] = client.score(stored["images"], stored["prompts"].tolist()).values
    np.savez(run / "monitor.npz", **found)


def read_outcome(run: Path) -> Outcome:
    recipe = load_recipe(run / "recipe.json")
    per_image = forwards(recipe).total
    cpu_s, curve = 0.0, []
    for row in read_metrics(run):
        if row["kind"] == "train":
            cpu_s += row["epoch_cpu_s"]
        elif row["kind"] == "validation":
            done = row["epoch"] * recipe.images_per_epoch * per_image
            curve.append((float(done), float(row["score"])))
    with np.load(run / "monitor.npz", allow_pickle=False) as monitor:
        before, after = (
            _measures(run / "heldout" / f"{n}.npz", monitor[n]) for n in ("before", "after")
        )
    return Outcome(per_image, recipe.epochs, before, after, cpu_s, curve)


def _measures(path: Path, monitor: np.ndarray) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        prompts, images, values = stored["prompts"], stored["images"], stored["values"]
    count = len(dict.fromkeys(prompts.tolist()))
    groups = images.reshape(count, -1, *images.shape[1:])
    spread = [[image_diversity(group, ["the same"] * len(group))] for group in groups]
    return {
        "task": values.reshape(count, -1),
        "monitor": monitor.reshape(count, -1),
        "diversity": np.array(spread),
    }


def intervals(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, Interval]:
    """Means over seeds, prompts and images; the bounds are of a bootstrap over the prompts of each seed."""
    found = {}
    for name in MEASURES:
        between = interval([run[name] for run in runs])
        assert between is not None, f"no score at all for {name}"
        found[name] = between
    return found


def rows(outcomes: Mapping[str, Sequence[Outcome]]) -> list[dict[str, Any]]:
    """The base model, by the first finished variant's seeds, then the variants."""
    finished = {name: runs for name, runs in outcomes.items() if runs}
    if not finished:
        return []
    first = max(finished.values(), key=len)
    base = {"variant": "base", **intervals([run.before for run in first]), "seeds": len(first)}
    found = [base]
    for name, runs in finished.items():
        found.append(
            {
                "variant": name,
                **intervals([run.after for run in runs]),
                "seeds": len(runs),
                "forwards": runs[0].forwards_per_image,
                "epochs": runs[0].epochs,
                "cpu": [run.cpu_s for run in runs],
                "each": [float(np.nanmean(run.after["task"])) for run in runs],
            }
        )
    return found


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Markdown."""
    lines = [
        "| variant | F | epochs | seeds | task, by seed | monitor (OCR) | diversity | CPU, s |",
        "|---|---:|---:|---:|---|---|---|---:|",
    ]
    for row in rows(outcomes):
        each = ", ".join(f"{score:.3f}" for score in row.get("each", []))
        cpu = row.get("cpu")
        cells = [
            str(row["variant"]),
            str(row.get("forwards", "")),
            str(row.get("epochs", "")),
            str(row["seeds"]),
            f"**{_said(row['task'])}**" + (f" ({each})" if each else ""),
            _said(row["monitor"]),
            _said(row["diversity"]),
            f"{mean(cpu):.0f} ({min(cpu):.0f} to {max(cpu):.0f})" if cpu else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _said(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def draw(outcomes: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Left, validation against forwards, as `flow-grpo report` draws: lines are means over the seeds, bands
    reach from the lowest to the highest. Right, what the held-out images reach under the trained reward
    and under the monitor, with intervals."""
    figure, (left, right) = charts.new_axes(
        "transformer forwards", "validation score (legibility)", width=11, height=4.4, columns=2
    )
    for number, row in enumerate(rows(outcomes)):
        name, look = str(row["variant"]), charts.Look(number)
        runs = outcomes.get(name, ())
        if runs:
            curve = joined([np.array(run.curve).T for run in runs])
            charts.draw_curve(left, curve, look)
        task, monitor = row["task"], row["monitor"]
        right.errorbar(
            task.mean,
            monitor.mean,
            xerr=[[task.mean - task.low], [task.high - task.mean]],
            yerr=[[monitor.mean - monitor.low], [monitor.high - monitor.mean]],
            color=look.color,
            marker="o",
            label=name,
        )
    left.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k" if value else "0")
    right.set_xlabel("held-out legibility, trained on")
    right.set_ylabel("held-out OCR, never trained on")
    right.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
