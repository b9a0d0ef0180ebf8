"""The page on which a person chooses thresholds: a histogram of every reward, in one HTML file without
outside requests."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flow_trainer.curation.rules import Rule
from flow_trainer.curation.selection import SPLITS, Selection
from flow_trainer.record.report import charts
from flow_trainer.record.report.charts import COLORS

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
SHOWN = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Where on a reward's scale example images are taken from."""
_BINS = 60
_THUMBNAIL = 132


@dataclass(frozen=True, slots=True)
class Panel:
    """One reward, or a sub-score with a rule."""

    column: str
    chart: str
    scored: int
    unscored: int
    example: str
    """Of an image without a score."""
    rules: list[tuple[str, int]]
    """And how many images fail each."""
    quantiles: list[tuple[float, float]]
    """Share of the images below, and the score there."""
    examples: list[tuple[float, str]]
    """Score and thumbnail, as a data URL."""


def shown_rows(values: np.ndarray) -> list[int]:
    """Rows of the images that stand for a reward's scale, worst first."""
    scored = np.flatnonzero(np.isfinite(values))
    if not len(scored):
        return []
    order = scored[np.argsort(values[scored], kind="stable")]
    places = [int(share * (len(order) - 1)) for share in SHOWN]
    return [int(order[place]) for place in dict.fromkeys(places)]


def thumbnail(pixels: np.ndarray) -> str:
    """A data URL. Small images are enlarged by whole factors, so that they stay what they are."""
    image = Image.fromarray(pixels)
    factor = _THUMBNAIL // max(image.size)
    if factor > 1:
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    else:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def panel(
    column: str,
    values: np.ndarray,
    rules: Sequence[Rule],
    selection: Selection,
    thumbnails: Mapping[int, str],
) -> Panel:
    own = [rule for rule in rules if rule.column == column]
    scored = values[np.isfinite(values)]
    reward = column.partition(".")[0]
    marks = np.quantile(scored, QUANTILES) if len(scored) else []
    return Panel(
        column,
        _chart(column, scored, own) if len(scored) else "",
        len(scored),
        selection.unscored[reward],
        selection.example.get(reward, ""),
        [(str(rule), selection.failing[str(rule)]) for rule in own],
        list(zip(QUANTILES, map(float, marks), strict=False)),
        [(float(values[r]), thumbnails[r]) for r in shown_rows(values) if r in thumbnails],
    )


def write_page(
    path: Path,
    *,
    name: str,
    panels: Sequence[Panel],
    selection: Selection,
    facts: Sequence[tuple[str, str]],
) -> None:
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("flow_trainer.curation", "templates"),
        autoescape=select_autoescape(default=True),
    )
    counts = selection.counts
    total = sum(counts.values())
    html = environment.get_template("curation.html").render(
        name=name,
        panels=panels,
        total=total,
        kept=sum(counts[split] for split in SPLITS),
        outcomes=outcomes(counts),
        facts=facts,
        variables=charts.css_variables(),
    )
    path.write_text(html, encoding="utf-8")


def outcomes(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Splits first, then the reasons, the most frequent first."""
    kept = [(split, counts[split]) for split in SPLITS if counts.get(split)]
    dropped = [(name, count) for name, count in counts.items() if name not in SPLITS]
    return kept + sorted(dropped, key=lambda item: -item[1])


def _chart(column: str, values: np.ndarray, rules: Sequence[Rule]) -> str:
    """An SVG: images by score, those that pass the reward's own rules in colour."""
    passes = np.ones(len(values), bool)
    for rule in rules:
        passes &= rule.hold(values)
    figure, (axes,) = charts.new_axes(column, "images", width=9.6, height=3.0)
    kept, out, mark, ink = (COLORS[name][0] for name in ("kept", "out", "mark", "ink"))
    edges = _edges(values, rules)
    parts: dict[str, Any] = {"bins": edges, "stacked": True, "color": [kept, out]}
    labels = ["passes", "fails"] if rules else ["images", "_"]
    axes.hist([values[passes], values[~passes]], label=labels, **parts)
    for rule in rules:
        axes.axvline(rule.threshold, color=mark, linestyle="--", linewidth=1.6, label=str(rule))
    if rules:
        axes.legend(frameon=False, fontsize=9, labelcolor=ink)
    return charts.as_svg(figure, {}, name=column)


def _edges(values: np.ndarray, rules: Sequence[Rule]) -> np.ndarray:
    """Of the bins: equal ones, and every threshold that lies between."""
    edges = np.histogram_bin_edges(values, _BINS)
    inside = [r.threshold for r in rules if edges[0] < r.threshold < edges[-1]]
    return np.unique(np.concatenate([edges, inside]))
