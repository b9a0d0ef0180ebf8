"""Data sets of the Hugging Face hub, or local folders in their layouts, by its `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
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

HUB = "hf:"


class HubPairs:
    """Rows are memory-mapped files of the `datasets` cache."""

    def __init__(self, text: str, caption: str | None = None, image: str | None = None) -> None:
        """`text`: OWNER/NAME@SPLIT#CAPTION; the split is `train` where not said. Raises ConfigError."""
        import_name, split, column = parse_hub(text)
        self.name = HUB + text
        rows = load_hub_rows(import_name, split or "train")
        names = rows.column_names
        self._caption = find_column(names, caption or column, CAPTIONS, "caption", self.name)
        self._image = find_column(names, image, IMAGES, "image", self.name)
        self._metadata = "metadata" if "metadata" in names else None
        kept = [self._image, self._caption, *([self._metadata] if self._metadata else [])]
        self._rows = _undecoded(rows.select_columns(kept), self._image)
        # of the files and the way they were read
        self._stamp = str(getattr(rows, "_fingerprint", len(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Pair]:
        captions = self._rows.remove_columns([self._image])
        for number, row in enumerate(captions):
            told = as_metadata(row.get(self._metadata or ""), f"{self.name}: row {number}")
            yield Pair(
                str(number), as_caption(row[self._caption]), self._stamp, self._reader(number), told
            )

    def _reader(self, number: int) -> Any:
        def read() -> bytes:
            cell = self._rows[number][self._image] or {}
            if isinstance(cell, bytes):
                return cell
            if cell.get("bytes") is not None:
                return cell["bytes"]
            if cell.get("path") is None:
                raise FileNotFoundError(2, "the row holds no image")
            with open(cell["path"], "rb") as file:
                return file.read()

        return read


def _undecoded(rows: Any, image: str) -> Any:
    """Images as their files' bytes: they are decoded here, once, as all others are."""
    import datasets

    if isinstance(rows.features[image], datasets.Image):
        return rows.cast_column(image, datasets.Image(decode=False))
    return rows


def parse_hub(text: str) -> tuple[str, str, str | None]:
    """OWNER/NAME@SPLIT#COLUMN to name, split ("" where not said) and column."""
    rest, _, column = text.partition("#")
    name, _, split = rest.partition("@")
    return name, split, column or None


def load_hub_rows(name: str, split: str) -> Any:
    """A split of a Hugging Face data set, or of a local folder in its layout. Raises ConfigError."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"hf:{name} needs Hugging Face's datasets: pip install 'flow-rewards[data]', or pass a file"
        ) from None
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises dozens of kinds, for network, name and format
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ConfigError(
            f"hf:{name}@{split} cannot be loaded: {first[0]}; check name, split and network, or "
            "download it and pass the file"
        ) from None
