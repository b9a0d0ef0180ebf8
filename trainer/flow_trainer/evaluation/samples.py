"""The scores of a suite's images, one appended line each, so that a killed evaluation goes on where
it ended.

::

    OUT/SUITE/SUBJECT-DIGEST/
        identity.json        what decides the images
        scores-0000.jsonl    lines of rank 0: image, reward, its scores or the reason why not
        images/              PROMPT_MEMBER.png, when they are kept
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flow_trainer.record.journal import Journal


@dataclass(slots=True)
class Finished:
    """Scores by reward and image."""

    scores: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    errors: dict[str, dict[int, str]] = field(default_factory=dict)
    """Of images that have no score under that reward."""
    revisions: dict[str, set[str]] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        name, image = row["reward"], row["image"]
        if "error" in row:
            if image not in self.scores.get(name, {}):
                self.errors.setdefault(name, {})[image] = row["error"]
            return
        self.scores.setdefault(name, {})[image] = row["scores"]
        self.errors.get(name, {}).pop(image, None)
        self.revisions.setdefault(name, set()).add(row["revision"])


class Samples:
    """Opens the folder of a subject for one rank; several ranks have a file each, and may be others
    the next time."""

    def __init__(self, folder: Path, identity: dict[str, Any], rank: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            (folder / "identity.json").write_text(json.dumps(identity, indent=2) + "\n")
        self._journal = Journal(folder / f"scores-{rank:04d}.jsonl")

    def read(self) -> Finished:
        """Everything that all ranks wrote. A line that a kill cut short does not count."""
        finished = Finished()
        for path in sorted(self.folder.glob("scores-*.jsonl")):
            for row in Journal(path):
                finished.add(row)
        return finished

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Durable once it returns."""
        self._journal.append(rows)

    def image_path(self, prompt: int, member: int) -> Path:
        return self.folder / "images" / f"{prompt:05d}_{member}.png"

    def keep_images(self, keys: Sequence[tuple[int, int]], pixels: np.ndarray) -> None:
        """(B, H, W, 3) uint8 of (prompt, member), losslessly; a file appears when it is whole."""
        for key, image in zip(keys, pixels, strict=True):
            path = self.image_path(*key)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                partial = path.with_suffix(".partial")
                Image.fromarray(image).save(partial, "PNG")
                partial.replace(path)
