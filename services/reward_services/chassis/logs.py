"""Logs as text or one JSON object per line, on standard error. They carry request ids, never
tokens, prompts or image bytes."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

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
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn's start and stop lines repeat ours; grpc's and httpx's debug lines can hold headers.
    for name in ("uvicorn", "uvicorn.error", "grpc", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


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
