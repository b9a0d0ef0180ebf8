"""Logs as text or one JSON object per line, on standard error. They carry request ids, never
tokens, prompts or image bytes."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

BURST = 100
"""Lines of one kind, from warnings on, that are written as they come; after these ..."""
PER_SECOND = 1.0
"""... so many a second. A caller whose every call is refused cannot fill a disk."""
_MAX_KINDS = 1000

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(level: str, form: str, reward: str) -> None:
    """Sends all logging of the process through one handler. `extra={...}` adds fields."""
    # Not part of our lines, and half of a record's cost: where it was logged, by what thread.
    logging._srcfile = None  # pyright: ignore[reportAttributeAccessIssue]
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(reward) if form == "json" else _TextFormatter(reward))
    root = logging.getLogger()
    handler.addFilter(_Repeats())
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn's start and stop lines repeat ours; grpc's and httpx's debug lines can hold headers.
    for name in ("uvicorn", "uvicorn.error", "grpc", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class _Repeats(logging.Filter):
    """Bounds lines of one kind: of a call its `reason`, else the logger and the message's template. The
    next line that is written says how many were left out; the metrics count all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[object, ...], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        kind = (record.name, record.levelno, getattr(record, "reason", record.msg))
        now = time.monotonic()
        if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        state = self._kinds.setdefault(kind, [float(BURST), now, 0.0])
        allowed, seen, left_out = state
        allowed = min(float(BURST), allowed + (now - seen) * PER_SECOND)
        if allowed < 1:
            state[:] = allowed, now, left_out + 1
            return False
        if left_out:
            record.left_out = int(left_out)
        state[:] = allowed - 1, now, 0.0
        return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _PLAIN}


class _JsonFormatter(logging.Formatter):
    def __init__(self, reward: str) -> None:
        super().__init__()
        self._reward = reward

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "reward": self._reward,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    def __init__(self, reward: str) -> None:
        super().__init__()
        self._reward = reward

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{_utc(record)} {record.levelname:<7} {self._reward}: {record.getMessage()}{fields}"
        line = "\\n".join(line.splitlines())  # a message may quote its caller
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _utc(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
