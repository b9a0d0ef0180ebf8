"""Whether a checkpoint on disk is what was written: size and SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SEAL = "checksums.json"


def seal(folder: Path) -> None:
    """Writes `checksums.json` over all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in files}
    (folder / SEAL).write_text(json.dumps(sums, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder; None when it is whole, or was never sealed."""
    path = folder / SEAL
    if not path.exists():
        return None
    try:
        sums = json.loads(path.read_text())
        for name, (size, digest) in sums.items():
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} of {size} bytes"
            if _digest(file) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
