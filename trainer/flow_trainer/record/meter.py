"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 30.0
"""Seconds between lines where there is no terminal."""


class Meter:
    """Counts to `total`; a quiet one (of all ranks but the first) says nothing."""

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self._title, self._total, self._done, self._quiet = title, total, done, quiet
        self.console = Console(stderr=True, highlight=False)
        self._started = self._said = time.monotonic()
        self._first = done
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet,
        )
        self._task = self._bar.add_task(title, total=total, completed=done)

    def advance(self, count: int) -> None:
        self._done += count
        self._bar.update(self._task, completed=self._done)
        now = time.monotonic()
        if self.console.is_terminal or now - self._said < LINE_EVERY_S:
            return
        self._said = now
        rate = (self._done - self._first) / (now - self._started)
        left = f", about {(self._total - self._done) / rate:.0f} s left" if rate else ""
        self.say(f"{self._title}: {self._done} of {self._total}{left}")

    def say(self, message: str) -> None:
        if not self._quiet:
            self.console.print(message, markup=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
