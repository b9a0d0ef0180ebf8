"""Images with text, drawn with the font that is part of Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

DARK, LIGHT = (20, 30, 90), (250, 245, 225)


def _draw(
    lines: str | Sequence[str],
    size: tuple[int, int] = (128, 64),
    font_size: int = 20,
    ink: tuple[int, int, int] = DARK,
    paper: tuple[int, int, int] = LIGHT,
) -> np.ndarray:
    """(H, W, 3) uint8 RGB of `size` (width, height): the lines below each other, centred."""
    lines = [lines] if isinstance(lines, str) else lines
    image = Image.new("RGB", size, paper)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(font_size)
    for row, line in enumerate(lines):
        center = (size[0] / 2, size[1] * (row + 0.5) / len(lines))
        canvas.text(center, line, font=font, fill=ink, anchor="mm")
    return np.asarray(image)


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    return _draw
