"""From scores to the paper's tables, as Markdown for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flow_trainer.evaluation.bootstrap import LEVEL, RESAMPLES, Interval, interval
from flow_trainer.evaluation.published import Published, published
from flow_trainer.evaluation.samples import Finished
from flow_trainer.evaluation.suites import Metric, Suite
from flow_trainer.recipe.prompts import Prompt

_NONE = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """What stands in a column: a metric over groups of prompts, of whose means it is the mean."""

    key: str
    title: str
    metric: Metric
    groups: list[list[int]]
    """Prompt indices."""


@dataclass(slots=True)
class Row:
    """A measured model, or the difference of two."""

    label: str
    cells: dict[str, Interval]
    """By column key; those without any score are not in it."""
    scored: dict[str, int] = field(default_factory=dict)
    """Images with a score, of each column."""


@dataclass(slots=True)
class Table:
    name: str
    title: str
    columns: dict[str, str]
    """Titles by key, in order."""
    rows: list[Row]
    paper: list[Published]
    notes: list[str]
    missing: dict[str, str]
    """Columns without a figure and why, by title."""
    protocol: dict[str, Any]

    def as_markdown(self) -> str:
        """A heading, the table with its columns aligned, and the notes."""
        lines = [["", *self.columns.values()]]
        for row in self.rows:
            lines.append([row.label, *(_figure(row.cells.get(key)) for key in self.columns)])
            bounds = [_bounds(row.cells.get(key)) for key in self.columns]
            lines.append([f"{LEVEL:.0%} interval", *bounds])
        for figure in self.paper:
            cells = [figure.values.get(key) for key in self.columns]
            shown = [_NONE if value is None else f"{value:.2f}" for value in cells]
            lines.append([f"paper: {figure.model}", *shown])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        notes = [f"- {note}" for note in [*self._missing_notes(), *self.notes]]
        return "\n".join([f"## {self.title}", "", *text, "", *notes]) + "\n"

    def _missing_notes(self) -> list[str]:
        return [f"missing: {title} ({why})" for title, why in self.missing.items()]

    def as_json(self) -> dict[str, Any]:
        return {
            "table": self.name,
            "protocol": self.protocol,
            "columns": self.columns,
            "rows": [
                {
                    "label": row.label,
                    "values": {key: asdict(cell) for key, cell in row.cells.items()},
                    "scored": row.scored,
                }
                for row in self.rows
            ],
            "interval": {"level": LEVEL, "bootstrap_resamples": RESAMPLES, "unit": "prompt"},
            "paper": [asdict(figure) for figure in self.paper],
            "missing": self.missing,
            "notes": self.notes,
        }

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(self.as_markdown(), encoding="utf-8")
        text = json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{self.name}.json").write_text(text, encoding="utf-8")


def suite_columns(suite: Suite, prompts: Sequence[Prompt]) -> list[Column]:
    everything = list(range(len(prompts)))
    if not suite.groups:
        return [Column(m.key, m.title, m, [everything]) for m in suite.metrics]
    (metric,) = suite.metrics
    members = {
        group.key: [i for i in everything if suite.group_of(prompts[i]) == group.key]
        for group in suite.groups
    }
    filled = [members[group.key] for group in suite.groups if members[group.key]]
    columns = [Column("overall", "overall", metric, filled)] if suite.overall else []
    return columns + [
        Column(group.key, group.title, metric, [members[group.key]]) for group in suite.groups
    ]


def score_matrix(finished: Finished, metric: Metric, num_prompts: int, each: int) -> np.ndarray:
    """(P, K) scores on the papers' scale, NaN where there is none."""
    values = np.full(num_prompts * each, np.nan)
    for image, scores in finished.scores.get(metric.reward, {}).items():
        if image < len(values):
            values[image] = metric.scale * scores.get(metric.score, np.nan)
    return values.reshape(num_prompts, each)


def measured_row(label: str, columns: Sequence[Column], matrices: Mapping[str, np.ndarray]) -> Row:
    """`matrices`: the scores (P, K) by metric."""
    row = Row(label, {})
    for column in columns:
        values = matrices[column.metric.key]
        parts = [values[group] for group in column.groups if group]
        found = interval(parts) if parts else None
        row.scored[column.key] = int(sum(np.isfinite(part).sum() for part in parts))
        if found is not None:
            row.cells[column.key] = found
    return row


def suite_table(
    suite: Suite,
    prompts: Sequence[Prompt],
    subjects: Mapping[str, Finished],
    *,
    family: str,
    protocol: dict[str, Any],
    unanswered: Mapping[str, str],
    notes: Sequence[str],
) -> Table:
    """`subjects`: what is finished of every row, by label; each after the first is also subtracted
    from the first, image by image. `unanswered`: why a reward did not take part."""
    columns, each = suite_columns(suite, prompts), suite.images_per_prompt
    matrices = {
        label: {m.key: score_matrix(finished, m, len(prompts), each) for m in suite.metrics}
        for label, finished in subjects.items()
    }
    rows = [measured_row(label, columns, found) for label, found in matrices.items()]
    first, *others = matrices.items()
    for label, found in others:
        differences = {key: values - found[key] for key, values in first[1].items()}
        rows.append(measured_row(f"difference to {label}, paired", columns, differences))
    missing = {}
    for column in columns:
        if column.key not in rows[0].cells:
            reward = column.metric.reward
            why = unanswered.get(reward, "no image has a score")
            missing[column.title] = why if column.groups[0:1] != [[]] else "no such prompt"
    total = len(prompts) * each
    return Table(
        suite.name,
        f"{suite.title}: {len(prompts)} prompts x {each} = {total} images",
        {column.key: column.title for column in columns},
        rows,
        published(suite.name, family),
        [*notes, *_incomplete(suite, subjects, total, unanswered)],
        missing,
        protocol,
    )


def _incomplete(
    suite: Suite, subjects: Mapping[str, Finished], total: int, unanswered: Mapping[str, str]
) -> list[str]:
    """What the figures leave out, and rewards that changed in between."""
    notes = []
    for label, finished in subjects.items():
        for metric in suite.metrics:
            scored = len(finished.scores.get(metric.reward, {}))
            errors = finished.errors.get(metric.reward, {})
            if metric.reward not in unanswered and scored < total:
                why = f", e.g. {next(iter(errors.values()))}" if errors else ""
                notes.append(f"{label}: {metric.title} has {scored} of {total} scores{why}")
            revisions = finished.revisions.get(metric.reward, set())
            if len(revisions) > 1:
                notes.append(
                    f"{label}: {metric.title} was scored by several revisions of the service "
                    f"({', '.join(sorted(revisions))}): use another --out for figures that compare"
                )
    return notes


TASK_COLUMNS = {
    "geneval": ("GenEval", "geneval", "overall"),
    "ocr": ("OCR", "ocr", "ocr"),
    "pickscore": ("PickScore", "pickscore", "pickscore"),
    "drawbench.aesthetic": ("DB Aesthetic", "drawbench", "aesthetic"),
    "drawbench.deqa": ("DB DeQA", "drawbench", "deqa"),
    "drawbench.imagereward": ("DB ImgRwd", "drawbench", "imagereward"),
    "drawbench.pickscore": ("DB PickScore", "drawbench", "pickscore"),
    "drawbench.unifiedreward": ("DB UniRwd", "drawbench", "unifiedreward"),
}
"""Of the paper's Table 2: title, suite and that suite's column. DB: on DrawBench's prompts."""


def task_table(tables: Mapping[str, Table], family: str) -> Table:
    """The task's metric beside image quality and preference on DrawBench: one row per model."""
    rows: dict[str, Row] = {}
    missing: dict[str, str] = {}
    for key, (title, suite, column) in TASK_COLUMNS.items():
        if suite not in tables:
            missing[title] = f"add --suite {suite}"
            continue
        for source in tables[suite].rows:
            row = rows.setdefault(source.label, Row(source.label, {}))
            row.scored[key] = source.scored[column]
            if column in source.cells:
                row.cells[key] = source.cells[column]
        if not any(key in row.cells for row in rows.values()):
            why = tables[suite].missing
            missing[title] = why.get(tables[suite].columns[column], "no score")
    return Table(
        "tasks",
        "Task metric, and image quality and preference on DrawBench",
        {key: title for key, (title, _, _) in TASK_COLUMNS.items()},
        list(rows.values()),
        published("tasks", family),
        [],
        missing,
        {name: table.protocol for name, table in tables.items()},
    )


def _figure(cell: Interval | None) -> str:
    return _NONE if cell is None else f"{cell.mean:.3f}"


def _bounds(cell: Interval | None) -> str:
    return _NONE if cell is None else f"{cell.low:.3f} to {cell.high:.3f}"
