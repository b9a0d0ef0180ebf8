"""A file of JSON lines that is only ever appended to: what it holds survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Durable once it returns."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        if not text:
            return
        with self._path.open("a+b") as file:
            if file.tell() and not _ends_a_line(file):
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Its lines, one at a time. One that a kill cut short does not count."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
