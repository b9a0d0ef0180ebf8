"""Pairs of images of a prompt, one of them preferred."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_trainer.dataset.pairs import as_caption
from flow_trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Preference:
    prompt: str
    chosen: Path
    rejected: Path


def read_preferences(path: Path) -> list[Preference]:
    """A JSON object per line with prompt, chosen and rejected. Raises ConfigError with the line, also
    for an image that is not there."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.pairs = {path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_parse(line, path.parent, f"{path}:{number}"))
    if not found:
        raise ConfigError(f"data.pairs = {path} holds no pairs")
    return found


def _parse(line: str, folder: Path, where: str) -> Preference:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from None
    keys = ("prompt", "chosen", "rejected")
    if not isinstance(row, dict) or not all(as_caption(row.get(key)) for key in keys):
        raise ConfigError(f"{where}: expected an object with the texts {', '.join(keys)}")
    chosen, rejected = folder / row["chosen"], folder / row["rejected"]
    for image in (chosen, rejected):
        if not image.is_file():
            raise ConfigError(f"{where}: there is no {image}")
    if chosen == rejected:
        raise ConfigError(f"{where}: chosen and rejected are the same image")
    return Preference(row["prompt"], chosen, rejected)
