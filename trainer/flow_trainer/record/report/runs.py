"""Run folders as the report reads them: what can be read is shown, and what cannot is said."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Recipe, load_recipe
from flow_trainer.recipe.changes import RECIPE_FILE, changed_keys, explain

METRICS_FILE = "metrics.jsonl"

Column = tuple[np.ndarray, np.ndarray]
"""Epochs (N,) int64, ascending, and a metric's finite values (N,) float64."""
EMPTY: Column = (np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to a run at an epoch."""

    epoch: int
    what: str
    """The metric that it is about; empty for the whole run."""
    message: str
    value: float | None = None


@dataclass(slots=True)
class _Rows:
    """What metrics.jsonl holds, taken apart line by line: a long run's lines are not kept."""

    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    alarms: dict[tuple[int, str], Mark] = field(default_factory=dict)
    epochs: set[int] = field(default_factory=set)
    not_finite: dict[str, int] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    """Numbers of lines."""

    def take(self, row: Mapping[str, Any]) -> None:
        """A line that is there twice counts as it was written last."""
        kind, epoch = row["kind"], row["epoch"]
        if kind == "alarm":
            quantity = str(row.get("quantity"))
            message, value = str(row.get("message", quantity)), row.get("value")
            self.alarms[epoch, quantity] = Mark(epoch, quantity, message, _number(value))
            return
        if kind == "train":
            self.epochs.add(epoch)
        for key, value in row.items():
            number = _number(value)
            if number is None or key in ("kind", "epoch"):
                continue
            if math.isfinite(number):
                self.values.setdefault((kind, key), {})[epoch] = number
            else:
                self.not_finite[key] = self.not_finite.get(key, 0) + 1


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any length
        return math.inf


@dataclass(frozen=True)
class RunRecord:
    """One run folder, read."""

    folder: Path
    recipe: Recipe
    columns: Mapping[tuple[str, str], Column]
    """By kind of line (train, validation, ...) and metric."""
    alarms: Sequence[Mark]
    changes: Sequence[Mark]
    """What of the recipe changed where the run was resumed."""
    summary: Mapping[str, Any]
    """Empty for a run that has not ended."""
    notes: Sequence[str]
    """What a reader has to know: damaged lines, missing epochs."""

    def column(self, kind: str, key: str) -> Column:
        return self.columns.get((kind, key), EMPTY)

    def keys(self, kind: str) -> list[str]:
        """Metrics of a kind of line, in the order of the log."""
        return [key for found, key in self.columns if found == kind]

    def last(self, kind: str, key: str) -> float | None:
        _, values = self.column(kind, key)
        return float(values[-1]) if len(values) else None

    def mean(self, kind: str, key: str) -> float | None:
        _, values = self.column(kind, key)
        return float(values.mean()) if len(values) else None

    @cached_property
    def epochs(self) -> int:
        """The last that is logged."""
        return max(
            (int(e[-1]) for (kind, _), (e, _) in self.columns.items() if kind == "train"), default=0
        )

    @property
    def finished(self) -> bool:
        return bool(self.summary) and self.epochs >= self.recipe.epochs


def read_run(folder: Path) -> RunRecord:
    """Raises ConfigError when the folder is none of a run, or its recipe cannot be read."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name one that `flow-grpo train` has made")
    if not (folder / RECIPE_FILE).exists():
        raise ConfigError(f"{folder} holds no {RECIPE_FILE}: is it a run folder?")
    recipe = load_recipe(folder / RECIPE_FILE)
    rows = _read_rows(folder)
    summary, notes = _read_summary(folder / "summary.json")
    return RunRecord(
        folder=folder,
        recipe=recipe,
        columns={key: _column(found) for key, found in rows.values.items()},
        alarms=[rows.alarms[key] for key in sorted(rows.alarms)],
        changes=list(_recipe_changes(folder, recipe)),
        summary=summary,
        notes=[*_row_notes(rows), *notes],
    )


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, for figures that want all of them. Raises ConfigError for a damaged
    one; the last may have been cut when the run was killed, and is left out."""
    rows = []
    for number, row in _lines(run / METRICS_FILE):
        if row is None:
            raise ConfigError(
                f"{run / METRICS_FILE}:{number} is damaged: remove that line, or resume the run from "
                "its checkpoint"
            )
        rows.append(row)
    return rows


def _read_rows(folder: Path) -> _Rows:
    rows = _Rows()
    for number, row in _lines(folder / METRICS_FILE):
        if row is None:
            rows.damaged.append(number)
        else:
            rows.take(row)
    return rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and content of every line, None for one that is no line of a log. A last line without an
    end is being written, or was when the run was killed: it is passed over."""
    if not path.exists():
        raise ConfigError(f"{path.parent} holds no {path.name}: is it a run folder?")
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if row is None and not line.endswith("\n"):
                return
            yield number, row if _is_row(row) else None


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return False
    epoch = row.get("epoch")
    return isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0


def _column(found: Mapping[int, float]) -> Column:
    epochs = sorted(found)
    return np.array(epochs, np.int64), np.array([found[epoch] for epoch in epochs])


def _read_summary(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.exists():
        return {}, []
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))), []
    except (OSError, ValueError, TypeError) as error:
        return {}, [f"{path.name} cannot be read and is left out ({error})"]


def _row_notes(rows: _Rows) -> Iterator[str]:
    if rows.damaged:
        count = len(rows.damaged)
        lines = "1 damaged line" if count == 1 else f"{count} damaged lines"
        yield f"{METRICS_FILE}: {lines} left out ({ranges(rows.damaged)})"
    missing = sorted(set(range(1, max(rows.epochs, default=0))) - rows.epochs)
    if missing:
        yield f"not in {METRICS_FILE}: epoch{'s' if len(missing) > 1 else ''} {ranges(missing)}"
    for key, count in rows.not_finite.items():
        yield f"{key}: {count} value{'s' if count > 1 else ''} not finite, left out"


def ranges(numbers: Sequence[int], most: int = 8) -> str:
    """Ascending numbers as `3, 7 to 9`, at most so many parts."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    said = [" to ".join(map(str, part)) for part in parts[:most]]
    return ", ".join(said) + (", ..." if len(parts) > most else "")


def _recipe_changes(folder: Path, recipe: Recipe) -> Iterator[Mark]:
    """`recipe_until_epoch_N.json` is what a run had before it was resumed with another recipe."""
    paths = sorted(folder.glob("recipe_until_epoch_*.json"))
    try:
        before = [load_recipe(path) for path in paths]
    except ConfigError:
        return  # of another version; it says nothing about the curves
    for path, old, new in zip(paths, before, [*before, recipe][1:], strict=True):
        epoch = path.stem.rpartition("_")[2]
        said = "; ".join(explain(*change) for change in changed_keys(old, new).items())
        if said and epoch.isdecimal():
            yield Mark(int(epoch), "", f"resumed after epoch {int(epoch)} with {said}")
