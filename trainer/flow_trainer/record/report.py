"""`flow-grpo report`: one HTML file with the curves and the before/after pictures; no outside requests."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import load_recipe
from flow_trainer.record.runlog import image_grid
from flow_trainer.record.watch import QUANTITIES

PAIR_PROMPTS = 8
IMAGES_EACH = 4
SHOWN_WIDTH = 512
"""Pixels that a row of images should about fill."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out prompt before and after, same initial noise."""

    prompt: str
    before: str
    after: str
    before_score: float | None
    after_score: float | None


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from the run's logs. Raises ConfigError when there is no run."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    rows = read_metrics(run)
    summary_path = run / "summary.json"
    summary = _read_summary(summary_path) if summary_path.exists() else {}
    recipe = load_recipe(run / "recipe.json")
    environment = Environment(
        loader=PackageLoader("flow_trainer.record", "templates"),
        autoescape=select_autoescape(default=True),
    )
    html = environment.get_template("report.html").render(
        name=recipe.name,
        summary=summary,
        facts=_facts(summary),
        curves=_curves(rows, summary),
        alarms=[row for row in rows if row["kind"] == "alarm"],
        pairs=_pairs(run),
        recipe=json.dumps(recipe.model_dump(), indent=2),
        epochs=recipe.epochs,
    )
    path = run / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): remove it, or resume the run"
        ) from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.exists():
        raise ConfigError(f"{run} holds no metrics.jsonl: is it a run folder?")
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # a line that is being written, or was when the run was killed
            raise ConfigError(
                f"{path}:{number}: {error}: remove that line, or resume the run from its checkpoint"
            ) from None
    return [row for row in rows if isinstance(row, dict) and {"kind", "epoch"} <= row.keys()]


def summary_table(summary: dict[str, Any]) -> str:
    """The result as aligned plain text."""
    facts = _facts(summary)
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    def score(key: str) -> str:
        value = summary.get(key)
        return "–" if value is None else f"{value:.3f}"

    steps = f"{summary.get('train_steps')} steps in training, {summary.get('eval_steps')} here"
    return [
        ("held-out score before", f"{score('heldout_before')}  ({steps})"),
        ("held-out score after", score("heldout_after")),
        ("best validation", f"{score('best_validation')} at epoch {summary.get('best_epoch')}"),
        ("epochs", str(summary.get("epochs"))),
        ("training time", f"{summary.get('train_wall_seconds', 0):.0f} s"),
        ("waiting for rewards", f"{100 * summary.get('reward_wait_fraction', 0):.2f} % of it"),
        ("seed", str(summary.get("seed"))),
    ]


def _curves(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(title, SVG) of every chart."""
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    if not train:
        return []
    alarms = [row for row in rows if row["kind"] == "alarm"]
    reward = _chart(
        [
            ("rollout (SDE, training prompts)", *_series(train, "reward")),
            ("validation (ODE, EMA weights)", *_series(validation, "score")),
        ],
        points=_heldout_points(summary, train[-1]["epoch"]),
    )
    charts = [("Reward", reward)]
    for title, key in [
        ("Spread inside groups (standard deviation)", "group_std"),
        *((what.title, key) for key, what in QUANTITIES.items()),
        *((f"Monitor {key.removeprefix('monitor.')}", key) for key in _monitors(train)),
        ("Clip fraction", "clip_fraction"),
        ("Gradient norm", "grad_norm"),
        ("Seconds per epoch", "epoch_s"),
        ("Seconds waiting for rewards", "reward_wait_s"),
        ("Images per second", "images_per_second"),
        ("Model FLOPs utilisation", "mfu"),
        ("Peak memory, GB", "peak_memory_gb"),
    ]:
        if any(key in row for row in train):
            rang = [row["epoch"] for row in alarms if row["quantity"] == key]
            charts.append((title, _chart([(title, *_series(train, key))], alarms=rang)))
    return charts


def _monitors(train: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for row in train for k in row if k.startswith("monitor.")))


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    found = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _heldout_points(summary: dict[str, Any], last: int) -> list[tuple[str, float, float]]:
    ends = [("held-out before", 0, "heldout_before"), ("held-out after", last, "heldout_after")]
    return [(name, x, summary[key]) for name, x, key in ends if summary.get(key) is not None]


def _chart(
    series: Sequence[tuple[str, list[float], list[float]]],
    points: Sequence[tuple[str, float, float]] = (),
    alarms: Sequence[int] = (),
) -> str:
    """An SVG; `alarms` are epochs, each a dashed line."""
    from matplotlib.figure import Figure

    main = bool(points) or len(series) > 1
    figure = Figure(figsize=(8.4, 3.6) if main else (4.1, 2.2), layout="constrained")
    axes = figure.subplots()
    for name, x, y in series:
        axes.plot(x, y, label=name, linewidth=1.6)
    for name, x, y in points:
        axes.plot([x], [y], "o", markersize=7, label=f"{name}: {y:.3f}")
    for number, epoch in enumerate(alarms):
        label = None if number else "alarm"
        axes.axvline(epoch, color="#c0392b", linestyle="--", linewidth=1.2, label=label)
    if alarms:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if main:
        axes.set_ylim(0, 1.02) if _unit_range(series, points) else None
        axes.legend(frameon=False, fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _unit_range(
    series: Sequence[tuple[str, list[float], list[float]]],
    points: Sequence[tuple[str, float, float]],
) -> bool:
    values = [v for _, _, y in series for v in y] + [y for _, _, y in points]
    return bool(values) and min(values) >= 0 and max(values) <= 1


def _pairs(run: Path) -> list[Pair]:
    """The first held-out prompts, before beside after; empty without a held-out evaluation."""
    paths = [run / "heldout" / f"{name}.npz" for name in ("before", "after")]
    if not all(path.exists() for path in paths):
        return []
    before, after = (_load(path) for path in paths)
    prompts = list(dict.fromkeys(before["prompts"].tolist()))[:PAIR_PROMPTS]
    pairs = []
    for prompt in prompts:
        rows = np.flatnonzero(before["prompts"] == prompt)[:IMAGES_EACH]
        pairs.append(
            Pair(
                prompt,
                _data_url(before["images"][rows]),
                _data_url(after["images"][rows]),
                _mean(before["values"][before["prompts"] == prompt]),
                _mean(after["values"][after["prompts"] == prompt]),
            )
        )
    return pairs


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): remove it, or evaluate again"
        ) from None


def _mean(values: np.ndarray) -> float | None:
    valid = values[np.isfinite(values)]
    return float(valid.mean()) if len(valid) else None


def _data_url(images: np.ndarray) -> str:
    """One row of images as a PNG data URL; small images are enlarged by whole factors."""
    scale = max(1, SHOWN_WIDTH // (images.shape[2] * len(images)))
    buffer = io.BytesIO()
    Image.fromarray(image_grid(images, len(images), scale)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
