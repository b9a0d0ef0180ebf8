"""Parquet files with the images' bytes, as data sets on the hub have them. Rows stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flow_trainer.dataset.pairs import (
    CAPTIONS,
    IMAGES,
    Pair,
    as_caption,
    as_metadata,
    find_column,
)
from flow_trainer.errors import ConfigError

ROWS = 32
"""Rows read at a time."""


class ParquetPairs:
    def __init__(
        self, files: Sequence[Path], name: str, caption: str | None = None, image: str | None = None
    ) -> None:
        """Raises ConfigError when a file is no parquet, or has no such columns."""
        self.name = name
        self._files = list(files)
        self._caption, self._image = caption, image
        for path in self._files:
            self._columns(path)

    def __len__(self) -> int:
        return sum(_open(path).metadata.num_rows for path in self._files)

    def __iter__(self) -> Iterator[Pair]:
        for path in self._files:
            yield from self._rows(path)

    def _rows(self, path: Path) -> Iterator[Pair]:
        file, (image, caption, metadata) = _open(path), self._columns(path)
        status = path.stat()
        stamp = f"{status.st_size}-{status.st_mtime_ns}"
        columns = [image, caption, *([metadata] if metadata else [])]
        number = 0
        for batch in file.iter_batches(ROWS, columns=columns):
            for row in batch.to_pylist():
                where = f"{path.name}:{number}"
                told = as_metadata(row.get(metadata or ""), where)
                read = _reader(row[image], path.parent)
                yield Pair(where, as_caption(row[caption]), stamp, read, told)
                number += 1

    def _columns(self, path: Path) -> tuple[str, str, str | None]:
        names = _open(path).schema_arrow.names
        return (
            find_column(names, self._image, IMAGES, "image", str(path)),
            find_column(names, self._caption, CAPTIONS, "caption", str(path)),
            "metadata" if "metadata" in names else None,
        )


def _reader(cell: Any, folder: Path) -> Any:
    """What reads a cell: bytes, or Hugging Face's {bytes, path}."""
    path = None
    if isinstance(cell, dict):
        cell, path = cell.get("bytes"), cell.get("path")
    if isinstance(cell, bytes):
        return lambda: cell
    if isinstance(path, str):
        return (folder / path).read_bytes
    return _nothing


def _nothing() -> bytes:
    raise FileNotFoundError(2, "the row holds no image")


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError:
        raise ConfigError(
            f"{path} needs pyarrow: pip install 'flow-rewards[data]', or pass a folder of images"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except ArrowException as error:
        raise ConfigError(f"{path} cannot be read as parquet: {str(error)[:200]}") from None
