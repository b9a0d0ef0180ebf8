"""What ended runs of `time_to_score.py` left, a line each in a file of the repository: the table and the
picture are drawn from it anywhere, and a run that has a line with its settings is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any

from harness import cpu_model
from pydantic import TypeAdapter
from score.outcome import Outcome

OUTCOMES = TypeAdapter(Outcome)
DIGITS = 4


class Results:
    """The lines of one file about runs that started from the checkpoint `start`; others stay as they are.
    `of` says which run is meant: its name and all that it was told. Of several lines of the same the
    last counts."""

    def __init__(self, path: Path, start: str) -> None:
        self.path, self.start = path, start
        self._lock = Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        found = map(json.loads, lines)
        self._found = {tuple(line["of"]): line for line in found if line["start"] == start}

    def outcome(self, of: tuple[str, ...]) -> Outcome | None:
        line = self._found.get(of)
        return None if line is None else OUTCOMES.validate_python(line["outcome"])

    def add(self, of: tuple[str, ...], outcome: Outcome) -> None:
        found = _rounded(OUTCOMES.dump_python(outcome, mode="json"))
        line = {"of": of, "start": self.start, "machine": cpu_model(), "outcome": found}
        with self._lock:
            self._found[of] = line
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def machines(self) -> list[str]:
        """The processors whose seconds they are."""
        return sorted({line["machine"] for line in self._found.values()})


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, DIGITS)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list():
            return [_rounded(item) for item in value]
    return value
