"""The image-text data of a run, and which of it an update trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flow_trainer.dataset.open import open_source
from flow_trainer.dataset.parquet import ParquetPairs
from flow_trainer.dataset.picture import Unusable, read_cropped
from flow_trainer.dataset.preferences import read_preferences
from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.data import Data
from flow_trainer.recipe.prompts import walk


@dataclass(frozen=True, slots=True)
class Example:
    prompt: str
    names: tuple[str, ...]
    """Of its images: one, or the chosen and the rejected one."""
    read: tuple[Callable[[], bytes], ...]


class Examples:
    """Images are read when they are asked for; captions and names are in memory."""

    def __init__(self, examples: Sequence[Example], width: int, height: int) -> None:
        self._examples = examples
        self._width, self._height = width, height

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def prompts(self) -> list[str]:
        return [example.prompt for example in self._examples]

    @property
    def digest(self) -> str:
        """Of names and captions in their order."""
        found = hashlib.sha256()
        for example in self._examples:
            found.update(repr((example.prompt, example.names)).encode())
        return found.hexdigest()

    def texts(self, numbers: Sequence[int]) -> list[str]:
        return [self._examples[number].prompt for number in numbers]

    def images(self, numbers: Sequence[int]) -> Tensor:
        """(B, H, W, 3) uint8 of all images of these examples, one example after the other, cropped to
        the model's size. Raises ConfigError for one that cannot be read or is smaller."""
        found = []
        for number in numbers:
            example = self._examples[number]
            for name, read in zip(example.names, example.read, strict=True):
                try:
                    picture = read_cropped(read(), self._width, self._height)
                except (Unusable, OSError) as error:
                    raise ConfigError(
                        f"[data] {name}: {error}; the model takes {self._width} x {self._height} pixels"
                    ) from None
                found.append(torch.from_numpy(picture.pixels))
        return torch.stack(found)

    def chosen(self, recipe: Recipe, data: Data, epoch: int) -> list[int]:
        """Numbers of the examples that the epoch trains on, one update after the other: the data is
        walked in passes, each in an order of its own."""
        count = data.batch * recipe.update.updates_per_epoch
        return walk(len(self), count, epoch * count, f"{recipe.seed}/data")


def open_examples(recipe: Recipe) -> Examples | None:
    """None without [data]. Raises ConfigError: none that can be used, or fewer than an epoch takes."""
    data = recipe.data
    if data is None:
        return None
    if data.pairs is not None:
        found = [
            Example(p.prompt, (p.chosen.name, p.rejected.name), _readers(p.chosen, p.rejected))
            for p in read_preferences(Path(data.pairs))
        ]
    else:
        found = _images(data.images or "")
    count = data.batch * recipe.update.updates_per_epoch
    if len(found) < count:
        raise ConfigError(
            f"[data] holds {len(found)} examples, and an epoch takes {count} (data.batch x "
            "update.updates_per_epoch): lower one of the two, or add data"
        )
    return Examples(found, recipe.model.width, recipe.model.height)


def _images(text: str) -> list[Example]:
    source = open_source(text)
    if isinstance(source, ParquetPairs):
        raise ConfigError(
            f"data.images = {text}: training reads images in any order, which parquet files do not "
            f"give; write hf:{text} for a folder of them, which Hugging Face's datasets reads"
        )
    return [
        Example(pair.prompt, (pair.key,), (pair.read,))
        for pair in source
        if pair.prompt is not None
    ]


def _readers(*paths: Path) -> tuple[Callable[[], bytes], ...]:
    return tuple(path.read_bytes for path in paths)
