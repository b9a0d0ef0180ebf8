"""What is known of every image: a journal on disk, and a few numbers an image in memory.

A line of journal.jsonl is about an image (the version it was read in, its size, its perceptual hash, or
why it is of no use) or about an image under a reward (its scores, or why it has none). Lines are only
appended, so a killed curation goes on where it ended. A later line counts more; a line about another
version of an image forgets the scores of the one before.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flow_trainer.dataset.pairs import Pair, digest64
from flow_trainer.record.journal import Journal
from reward_api import ScoreBatch

NO_CAPTION = "no caption"


class Ledger:
    """Rows are numbers of images in the order in which they were first seen."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._rows: dict[int, int] = {}
        self._versions, self.hashes = array("Q"), array("Q")
        self._widths, self._heights = array("L"), array("L")
        self._columns: dict[str, array[float]] = {}
        self._unusable: dict[int, str] = {}
        self._failed: dict[str, dict[int, str]] = {}
        self.unread: dict[int, str] = {}
        """Why an image's file could not be opened just now, by the digest of its key."""
        self.revisions: dict[str, set[str]] = {}
        """Of the services whose scores these are."""
        for line in self._journal:
            self._take(line)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, pair: Pair) -> int | None:
        """None: it was not seen yet, or not in this version."""
        row = self._rows.get(digest64(pair.key))
        known = row is not None and self._versions[row] == pair.version
        return row if known else None

    def why_unusable(self, row: int) -> str | None:
        return self._unusable.get(row)

    def size(self, row: int) -> tuple[int, int]:
        """Width and height before the crop."""
        return self._widths[row], self._heights[row]

    def lacking(self, row: int, rewards: Iterable[str]) -> list[str]:
        """Those of `rewards` under which the image has no score."""
        return [name for name in rewards if math.isnan(self.score(row, name))]

    def score(self, row: int, column: str) -> float:
        """NaN: there is none. A column is a reward, or REWARD.SUB."""
        values = self._columns.get(column)
        return math.nan if values is None else values[row]

    def scores(self, row: int, rewards: Iterable[str]) -> dict[str, float]:
        """By column, of these rewards."""
        wanted = set(rewards)
        found = {name: values[row] for name, values in self._columns.items()}
        return {
            name: value
            for name, value in found.items()
            if name.partition(".")[0] in wanted and not math.isnan(value)
        }

    def failure(self, row: int, reward: str) -> str | None:
        return self._failed.get(reward, {}).get(row)

    def columns(self, reward: str) -> list[str]:
        return [name for name in self._columns if name.partition(".")[0] == reward]

    def column(self, name: str) -> np.ndarray:
        """(rows,) float64, NaN where there is no score."""
        values = self._columns.get(name)
        return np.full(len(self), np.nan) if values is None else np.array(values)

    def note_images(self, lines: Sequence[dict[str, Any]]) -> None:
        """Lines of `seen` and `unusable`."""
        self._journal.append(lines)
        for line in lines:
            self._take(line)

    def note_scores(self, reward: str, keys: Sequence[str], batch: ScoreBatch) -> None:
        lines = []
        revision = "+".join(sorted(batch.revisions))
        for index, key in enumerate(keys):
            line: dict[str, Any] = {"image": key, "reward": reward}
            if batch.valid[index]:
                subs = {name: float(values[index]) for name, values in batch.scores.items()}
                line["value"] = float(batch.values[index])
                line["scores"] = {n: value for n, value in subs.items() if math.isfinite(value)}
                line["revision"] = revision
            else:
                line["error"] = str(batch.errors[index])
            lines.append(line)
        self.note_images(lines)

    def _take(self, line: dict[str, Any]) -> None:
        key = digest64(line["image"])
        if "version" in line:
            self._take_image(key, line)
            return
        row, reward = self._rows.get(key), line["reward"]
        if row is None:
            return
        failed = self._failed.setdefault(reward, {})
        if "error" in line:
            failed[row] = line["error"]
            return
        failed.pop(row, None)
        self._put(reward, row, line["value"])
        for name, value in line["scores"].items():
            self._put(f"{reward}.{name}", row, value)
        self.revisions.setdefault(reward, set()).add(line["revision"])

    def _take_image(self, key: int, line: dict[str, Any]) -> None:
        row = self._rows.setdefault(key, len(self._rows))
        version = int(line["version"], 16)
        if row == len(self._versions):
            for numbers in (self._versions, self.hashes, self._widths, self._heights):
                numbers.append(0)
            for values in self._columns.values():
                values.append(math.nan)
        elif self._versions[row] != version:
            for values in self._columns.values():
                values[row] = math.nan
            for failed in self._failed.values():
                failed.pop(row, None)
        self._versions[row] = version
        self._unusable.pop(row, None)
        if "unusable" in line:
            self._unusable[row] = line["unusable"]
        else:
            self.hashes[row] = int(line["phash"], 16)
            self._widths[row], self._heights[row] = line["size"]

    def _put(self, column: str, row: int, value: float) -> None:
        values = self._columns.get(column)
        if values is None:
            values = self._columns[column] = array("d", [math.nan]) * len(self._versions)
        values[row] = value


def seen(pair: Pair, size: tuple[int, int], phash: int) -> dict[str, Any]:
    """The line of an image that can be scored."""
    return {**_image(pair), "size": list(size), "phash": f"{phash:016x}"}


def unusable(pair: Pair, why: str) -> dict[str, Any]:
    return {**_image(pair), "unusable": why}


def _image(pair: Pair) -> dict[str, Any]:
    return {"image": pair.key, "version": f"{pair.version:016x}"}
