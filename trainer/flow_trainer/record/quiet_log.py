"""What every rank but the first has for a log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flow_trainer.record.runlog import RunLog


class QuietLog(RunLog):
    """Takes everything, and neither writes nor says it."""

    def __init__(self) -> None:  # nothing is opened
        pass

    def offsets(self) -> dict[str, int]:
        return {}

    def metrics(self, kind: str, epoch: int, values: Mapping[str, Any]) -> None:
        pass

    def audit(self, rows: Iterable[Mapping[str, Any]]) -> None:
        pass

    def images(
        self, name: str, epoch: int, grid: np.ndarray, prompts: Sequence[str] = ()
    ) -> Path | None:
        pass

    def say(self, message: str) -> None:
        pass

    def start(self, epoch: int) -> None:
        pass

    def phase(self, text: str, *, long: bool = False) -> None:
        pass

    def advance(self, epoch: int, total: int, note: str) -> None:
        pass

    def close(self) -> None:
        pass
