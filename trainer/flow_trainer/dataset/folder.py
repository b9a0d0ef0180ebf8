"""A folder of images: captions in a `.txt` beside each, or in metadata.jsonl as Hugging Face's
imagefolder has it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flow_trainer.dataset.pairs import CAPTIONS, Pair, as_caption, as_metadata, digest64
from flow_trainer.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LISTING = "metadata.jsonl"
_FOREIGN = ("metadata.csv", "metadata.parquet")


class FolderPairs:
    """All images below `root`, sorted in every folder. One with a metadata.jsonl has the order and the
    captions of that file, and then the images below it that the file does not list."""

    def __init__(self, root: Path, caption: str | None = None) -> None:
        self.name = str(root)
        self._root = root
        self._caption = caption

    def __len__(self) -> int:
        """Walks it all, so that a listing's mistakes are found before anything is done. Raises
        ConfigError."""
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Pair]:
        yield from self._walk(self._root)

    def _walk(self, folder: Path) -> Iterator[Pair]:
        if (folder / LISTING).is_file():
            yield from self._listed(folder)
            return
        foreign = next((name for name in _FOREIGN if (folder / name).is_file()), None)
        if foreign is not None:
            raise ConfigError(
                f"{folder / foreign} is not read: write it as {LISTING}, or pass hf:{folder}, which "
                "Hugging Face's datasets reads"
            )
        folders = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.is_dir():
                folders.append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield self._pair(path, _sidecar(path))
        for path in folders:
            yield from self._walk(path)

    def _listed(self, folder: Path) -> Iterator[Pair]:
        seen: set[int] = set()
        listing = folder / LISTING
        with listing.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{listing}:{number}"
                row = _row(line, where)
                path = folder / row["file_name"]
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise ConfigError(f"{where}: {row['file_name']} lies outside of {folder}")
                key = digest64(str(path))
                if key in seen:
                    raise ConfigError(f"{where}: {row['file_name']} is listed twice: keep one line")
                seen.add(key)
                caption = as_caption(row.get(self._column(row)))
                metadata = as_metadata(row.get("metadata"), where)
                yield self._pair(path, caption, metadata)
        for path in _image_files(folder):
            if digest64(str(path)) not in seen:
                yield self._pair(path, _sidecar(path))

    def _column(self, row: dict[str, Any]) -> str:
        if self._caption is not None:
            return self._caption
        return next((name for name in row if name.lower() in CAPTIONS), CAPTIONS[0])

    def _pair(self, path: Path, caption: str | None, metadata: Any = None) -> Pair:
        try:
            status = path.stat()
            stamp = f"{status.st_size}-{status.st_mtime_ns}"
        except OSError:
            stamp = "missing"
        key = path.relative_to(self._root).as_posix()
        return Pair(key, caption, stamp, path.read_bytes, metadata or {})


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ConfigError(f'{where}: expected an object with a "file_name" string')
    return row


def _sidecar(path: Path) -> str | None:
    try:
        return as_caption(path.with_suffix(".txt").read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.with_suffix('.txt')} is not UTF-8: {error}") from None


def _image_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (Path(folder, n) for n in sorted(files) if Path(n).suffix.lower() in SUFFIXES)
