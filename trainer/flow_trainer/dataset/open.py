"""A source by what a user writes: a folder, a parquet file or folder of them, hf:NAME."""

from __future__ import annotations

from pathlib import Path

from flow_trainer.dataset.folder import FolderPairs
from flow_trainer.dataset.hub import HUB, HubPairs
from flow_trainer.dataset.pairs import Source
from flow_trainer.dataset.parquet import ParquetPairs
from flow_trainer.errors import ConfigError


def open_source(text: str, caption: str | None = None, image: str | None = None) -> Source:
    """`caption`, `image`: names of columns where they are not the usual ones. Raises ConfigError."""
    if text.startswith(HUB):
        return HubPairs(text.removeprefix(HUB), caption, image)
    path = Path(text)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return ParquetPairs([path], text, caption, image)
    if path.is_file():
        raise ConfigError(
            f"{text} is neither a folder of images nor a .parquet file: pass one of them, or "
            "hf:OWNER/NAME"
        )
    if not path.is_dir():
        raise ConfigError(
            f"no folder or file {text}; a data set of the Hugging Face hub is written hf:{text}"
        )
    files = sorted(path.glob("*.parquet"))
    return ParquetPairs(files, text, caption, image) if files else FolderPairs(path, caption)
