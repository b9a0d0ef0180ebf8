"""The pictures of a report: fixed prompts through training, held-out prompts before and after."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from flow_trainer.record.report.groups import Group
from flow_trainer.record.runlog import GRID_GAP, PROMPTS_KEY, image_grid

CELLS = 160
"""Pictures of fixed prompts in a report, about."""
EPOCHS = 8
"""Of them: first, last and evenly between."""
PROMPTS = 8
IMAGES_EACH = 4
"""Of a held-out prompt, before and after."""
SHOWN_WIDTH = 512
"""Pixels that a row of held-out images should about fill."""
SMALL = 128
"""Pixels: what is smaller is kept exactly, what is larger becomes a JPEG of at most twice the side."""


@dataclass(frozen=True, slots=True)
class Cell:
    epoch: int
    url: str


@dataclass(frozen=True, slots=True)
class Strip:
    """One prompt through a run."""

    label: str
    style: int | None
    """A group's; None where only the prompt matters."""
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Block:
    title: str
    strips: Sequence[Strip]


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out prompt before and after, same initial noise."""

    prompt: str
    before: str
    after: str
    before_score: float | None
    after_score: float | None


@dataclass(frozen=True, slots=True)
class Pairs:
    label: str
    style: int
    pairs: Sequence[Pair]


def through_training(groups: Sequence[Group], notes: list[str]) -> list[Block]:
    """Fixed prompts of each group's first run that has pictures. Groups that drew the same prompts stand
    below each other, prompt by prompt. What cannot be read is said in `notes`."""
    grids = [(group, _fixed(group, notes)) for group in groups]
    grids = [(group, found) for group, found in grids if found]
    if not grids:
        return []
    count = max(1, min(PROMPTS, CELLS // (EPOCHS * len(grids))))
    prompts = [found[0].prompts[:count] for _, found in grids]
    if len(grids) > 1 and all(texts == prompts[0] for texts in prompts):
        return [
            Block(text, [_strip(group.label, group.style, n, found) for group, found in grids])
            for n, text in enumerate(prompts[0])
        ]
    return [
        Block(
            group.label if len(grids) > 1 else "",
            [_strip(text, None, n, found) for n, text in enumerate(texts)],
        )
        for (group, found), texts in zip(grids, prompts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Grid:
    epoch: int
    prompts: Sequence[str]
    pixels: np.ndarray
    """(H, W, 3) uint8, one column for each prompt."""

    def image(self, number: int) -> np.ndarray:
        width = (self.pixels.shape[1] - GRID_GAP) // len(self.prompts)
        left = GRID_GAP + number * width
        return self.pixels[GRID_GAP:-GRID_GAP, left : left + width - GRID_GAP]


def _strip(label: str, style: int | None, number: int, grids: Sequence[_Grid]) -> Strip:
    cells = [Cell(grid.epoch, _picture(grid.image(number))) for grid in grids]
    return Strip(label, style, cells)


def _fixed(group: Group, notes: list[str]) -> list[_Grid]:
    for run in group.runs:
        paths = sorted((run.folder / "images").glob("fixed_*.png"))
        wanted = np.unique(np.linspace(0, len(paths) - 1, min(EPOCHS, len(paths))).round())
        grids = [_read_grid(paths[int(number)], notes) for number in wanted]
        kept = [grid for grid in grids if grid is not None]
        # a run resumed with other prompts: those of now
        kept = [grid for grid in kept if grid.prompts == kept[-1].prompts]
        if kept:
            return kept
    return []


def _read_grid(path: Path, notes: list[str]) -> _Grid | None:
    try:
        with Image.open(path) as image:
            prompts = json.loads(image.info.get(PROMPTS_KEY, "[]"))
            pixels = np.asarray(image.convert("RGB"))
        epoch = int(path.stem.rpartition("_")[2])
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        notes.append(
            f"{path.parent.parent.name}: {path.name} cannot be read and is left out ({error})"
        )
        return None
    return _Grid(epoch, prompts, pixels) if prompts else None


def before_and_after(groups: Sequence[Group], notes: list[str]) -> list[Pairs]:
    """The first held-out prompts of each group's first run that has both evaluations."""
    found = []
    for group in groups:
        for run in group.runs:
            try:
                pairs = list(_pairs(run.folder / "heldout", max(1, PROMPTS // len(groups))))
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
                notes.append(f"{run.folder.name}: held-out pictures cannot be read ({error})")
                continue
            if pairs:
                found.append(Pairs(group.label, group.style, pairs))
                break
    return found


def _pairs(folder: Path, count: int) -> Iterator[Pair]:
    paths = [folder / f"{name}.npz" for name in ("before", "after")]
    if not all(path.exists() for path in paths):
        return
    with (
        np.load(paths[0], allow_pickle=False) as first,
        np.load(paths[1], allow_pickle=False) as last,
    ):
        prompts, scores = first["prompts"], (first["values"], last["values"])
    places = {
        prompt: np.flatnonzero(prompts == prompt)
        for prompt in list(dict.fromkeys(prompts.tolist()))[:count]
    }
    end = 1 + max((int(rows[:IMAGES_EACH][-1]) for rows in places.values()), default=-1)
    images = [_first_rows(path, end) for path in paths]
    for prompt, rows in places.items():
        before, after = (_row(pixels[rows[:IMAGES_EACH]]) for pixels in images)
        before_score, after_score = (_mean(values[rows]) for values in scores)
        yield Pair(prompt, before, after, before_score, after_score)


def _first_rows(path: Path, count: int) -> np.ndarray:
    """The first images (count, H, W, 3) of a file, the rest unread: there may be thousands."""
    with zipfile.ZipFile(path) as archive, archive.open("images.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("images.npy is of another version than numpy writes for images")
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        if by_column or dtype != np.uint8 or len(shape) != 4 or shape[0] < count:
            raise ValueError(f"images.npy holds {dtype} {shape}, not the images of all prompts")
        data = file.read(count * int(np.prod(shape[1:])))
    return np.frombuffer(data, np.uint8).reshape(count, *shape[1:])


def _mean(values: np.ndarray) -> float | None:
    valid = values[np.isfinite(values)]
    return float(valid.mean()) if len(valid) else None


def _row(images: np.ndarray) -> str:
    """One row of images; small ones are enlarged by whole factors."""
    height, width = images.shape[1:3]
    if max(height, width) <= SMALL:
        scale = max(1, SHOWN_WIDTH // (width * len(images)))
        return _png(_without_rim(image_grid(images, len(images), scale)))
    return _picture(_without_rim(image_grid(images, len(images))), 2 * SHOWN_WIDTH)


def _without_rim(grid: np.ndarray) -> np.ndarray:
    """A white frame would be seen on a dark page."""
    return grid[GRID_GAP:-GRID_GAP, GRID_GAP:-GRID_GAP]


def _picture(pixels: np.ndarray, most: int = 2 * SMALL) -> str:
    """Exactly, when it is small."""
    if max(pixels.shape[:2]) <= SMALL:
        return _png(pixels)
    image = Image.fromarray(pixels)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return _data_url(image, "JPEG", quality=85)


def _png(pixels: np.ndarray) -> str:
    return _data_url(Image.fromarray(pixels), "PNG", optimize=True)


def _data_url(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"
