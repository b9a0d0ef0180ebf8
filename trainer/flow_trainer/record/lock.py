"""One trainer at a time in a run folder, and one curation in its folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flow_trainer.errors import ConfigError

if TYPE_CHECKING:  # which imports torch
    from flow_trainer.parallel.world import World

NAME = ".trainer"
"""Holds who works in the folder; the lock on it ends with its process, however that ends."""


def make_folder(folder: Path) -> None:
    """Raises ConfigError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder} cannot be a folder: {error.strerror}") from None


@contextmanager
def sole_trainer(folder: Path, world: World) -> Iterator[None]:
    """Makes `folder` and holds it for the ranks of `world`, which enter together. Raises ConfigError
    when it cannot be made, or when another trainer holds it."""
    file, problem = _hold(folder, "trainer") if world.is_main else (None, None)
    if world.any(problem is not None):
        raise ConfigError(problem or f"{folder} cannot be used: the first rank says why")
    try:
        yield
    finally:
        if file is not None:
            file.close()


@contextmanager
def sole_curation(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds it. Raises ConfigError as `sole_trainer` does."""
    file, problem = _hold(folder, "curation")
    if problem is not None:
        raise ConfigError(problem)
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _hold(folder: Path, who: str) -> tuple[IO[str] | None, str | None]:
    """The open lock, or what is wrong."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / NAME).open("a+", encoding="utf-8")
    except OSError as error:
        return None, f"--out {folder} cannot be used as a folder: {error.strerror}"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.seek(0)
            holder = file.read().strip()
            file.close()
            return None, f"{folder} is in use by another {who} ({holder}): end it, or pass --out"
        # storage without locks: nothing can be known
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file, None
