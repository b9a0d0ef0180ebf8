"""The curated set as files: a folder for each split, or parquet.

::

    OUT/data/train/metadata.jsonl        a line per image: file_name, prompt, source, width, height, scores
    OUT/data/train/9f3c...-12ab34cd.png  what was scored
    OUT/data/validation/, OUT/data/test/ the same

or OUT/data/train-00000.parquet, ... with the same columns and `image`. Both are what Hugging Face's
`datasets` loads from OUT/data.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from flow_trainer.curation.gather import Crop
from flow_trainer.curation.ledger import Ledger
from flow_trainer.curation.selection import SPLITS
from flow_trainer.dataset.folder import LISTING
from flow_trainer.dataset.pairs import Pair, digest64
from flow_trainer.dataset.picture import Unusable
from flow_trainer.errors import ConfigError

ROW_GROUP = 32
SHARD_ROWS = 2048


class Writer(Protocol):
    def prepare(self, pair: Pair, row: int, split: str) -> bytes | None:
        """What may run beside other images' turns: reads, crops and encodes. Raises OSError."""
        ...

    def put(
        self, pair: Pair, row: int, split: str, scores: dict[str, float], file: bytes | None
    ) -> None:
        """In order, with what `prepare` gave."""
        ...

    def finish(self) -> None:
        """Only now is the new set complete, and takes the place of an older one."""
        ...


class Encoder:
    """Reads, crops and encodes an image: PNG, or JPEG of a quality."""

    def __init__(self, crop: Crop, ledger: Ledger, quality: int | None) -> None:
        self._crop = crop
        self._ledger = ledger
        self._quality = quality

    def name(self, pair: Pair) -> str:
        """The same for the same version of the same image, and no other's."""
        suffix = "png" if self._quality is None else f"q{self._quality}.jpg"
        return f"{digest64(pair.key):016x}-{pair.version & 0xFFFFFFFF:08x}.{suffix}"

    def file(self, pair: Pair) -> bytes:
        try:
            pixels = self._crop.read(pair).pixels
        except Unusable as error:
            raise ConfigError(
                f"{pair.key} changed while it was curated ({error}): run again"
            ) from None
        return encode(pixels, self._quality)

    def row(self, pair: Pair, row: int, scores: dict[str, float]) -> dict[str, Any]:
        width, height = self._ledger.size(row)
        return {
            "prompt": pair.prompt,
            "source": pair.key,
            "width": width,
            "height": height,
            "scores": scores,
            **({"metadata": dict(pair.metadata)} if pair.metadata else {}),
        }


def encode(pixels: np.ndarray, quality: int | None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if quality is None:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


class FolderWriter:
    """Images that an earlier run has written are not written again."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._folder = folder
        self._encoder = encoder
        self._listings: dict[str, IO[str]] = {}
        _clear(folder, "*.parquet")
        for split in SPLITS:
            (folder / split).mkdir(parents=True, exist_ok=True)
            self._listings[split] = (folder / split / f"{LISTING}.partial").open(
                "w", encoding="utf-8"
            )

    def prepare(self, pair: Pair, row: int, split: str) -> None:
        path = self._folder / split / self._encoder.name(pair)
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            partial.write_bytes(self._encoder.file(pair))
            partial.replace(path)

    def put(
        self, pair: Pair, row: int, split: str, scores: dict[str, float], file: bytes | None
    ) -> None:
        line = {
            "file_name": self._encoder.name(pair),
            **self._encoder.row(pair, row, scores),
        }
        self._listings[split].write(json.dumps(line, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        for split, listing in self._listings.items():
            folder = self._folder / split
            listing.flush()
            os.fsync(listing.fileno())
            listing.close()
            (folder / f"{LISTING}.partial").replace(folder / LISTING)
            _drop_unlisted(folder)


def _drop_unlisted(folder: Path) -> None:
    """Images of an earlier choice; a split without any image goes."""
    with (folder / LISTING).open(encoding="utf-8") as lines:
        listed = {digest64(json.loads(line)["file_name"]) for line in lines}
    for entry in os.scandir(folder):
        if entry.name != LISTING and digest64(entry.name) not in listed:
            Path(entry.path).unlink()
    if not listed:
        shutil.rmtree(folder)


class ParquetWriter:
    """Shards of some thousand images. They are written anew each time, beside those there are."""

    def __init__(self, folder: Path, encoder: Encoder, columns: Sequence[str]) -> None:
        """`columns`: the scores that there are. Raises ConfigError without pyarrow."""
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError:
            raise ConfigError(
                "--format parquet needs pyarrow: pip install 'flow-rewards[data]', or leave it out for a "
                "folder of images"
            ) from None
        self._arrow, self._parquet = arrow, parquet
        self._folder = folder
        self._partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._encoder = encoder
        self._columns = columns
        self._rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self._written: Counter[str] = Counter()
        self._shards: dict[str, Any] = {}

    def prepare(self, pair: Pair, row: int, split: str) -> bytes:
        return self._encoder.file(pair)

    def put(
        self, pair: Pair, row: int, split: str, scores: dict[str, float], file: bytes | None
    ) -> None:
        line = self._encoder.row(pair, row, scores)
        line["metadata"] = json.dumps(line.get("metadata", {}), ensure_ascii=False)
        image = {"bytes": file, "path": self._encoder.name(pair)}
        self._rows[split].append({"image": image, **line})
        if len(self._rows[split]) == ROW_GROUP:
            self._flush(split)

    def finish(self) -> None:
        for split in SPLITS:
            self._flush(split)
        for shard in self._shards.values():
            shard.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._partial.replace(self._folder)

    def _flush(self, split: str) -> None:
        rows = self._rows[split]
        if not rows:
            return
        number, within = divmod(self._written[split], SHARD_ROWS)
        if within == 0:
            if split in self._shards:
                self._shards[split].close()
            path = self._partial / f"{split}-{number:05d}.parquet"
            self._shards[split] = self._parquet.ParquetWriter(path, self._schema())
        table = self._arrow.Table.from_pylist(rows, schema=self._shards[split].schema)
        self._shards[split].write_table(table)
        self._written[split] += len(rows)
        rows.clear()

    def _schema(self) -> Any:
        a = self._arrow
        image = a.struct([("bytes", a.binary()), ("path", a.string())])
        features = {"image": {"_type": "Image"}}
        return a.schema(
            [
                ("image", image),
                ("prompt", a.string()),
                ("source", a.string()),
                ("width", a.int32()),
                ("height", a.int32()),
                ("scores", a.struct([(name, a.float64()) for name in self._columns])),
                ("metadata", a.string()),
            ],
            # that `image` holds images, as Hugging Face's datasets reads it
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )


def _clear(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()
