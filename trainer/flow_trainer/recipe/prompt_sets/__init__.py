"""Prompt files of our own making: GenEval's, benchmark and training, and text rendering."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError

Row = Mapping[str, Any]
"""One line: `prompt`, and for GenEval its metadata (`tag`, `include`, `exclude`)."""


def as_lines(rows: Iterable[Row]) -> str:
    """JSONL that `flow_trainer.recipe.prompts` and the rewards read."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_rows(rows: Sequence[Row], path: Path, *, force: bool = False) -> None:
    """Writes `rows` as JSONL, or their prompts alone where `path` ends in `.txt`.

    Raises ConfigError when the file exists and `force` is not set, or cannot be written.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: name another file, or overwrite it with --force")
    if path.suffix not in (".txt", ".jsonl", ".ndjson"):
        raise ConfigError(
            f"{path}: prompts are read from .jsonl, an object per line, or .txt, a prompt per line: name "
            "the file so"
        )
    only_text = path.suffix == ".txt"
    text = "".join(f"{row['prompt']}\n" for row in rows) if only_text else as_lines(rows)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from None
