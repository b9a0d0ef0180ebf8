"""Draws a sign: a centred four-letter word in one font, dark on light or light on dark."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 32, 64
FONT = ImageFont.truetype(str(Path(__file__).with_name("DejaVuSansMono-Bold.ttf")), 17)
LETTER_WIDTH = FONT.getlength("A")
DARK = [(30, 30, 60), (90, 20, 20), (15, 70, 40), (60, 25, 80), (25, 25, 25)]
LIGHT = [(240, 240, 235), (250, 220, 130), (180, 220, 250), (200, 240, 190), (250, 190, 190)]
JITTER = 15


def render(word: str, rng: random.Random) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8. Letters stand in fixed slots: the model learns which letter goes
    where long before it could learn variable layouts."""
    ink, paper = rng.choice(DARK), rng.choice(LIGHT)
    if rng.random() < 0.5:
        ink, paper = paper, ink
    ink, paper = _jitter(ink, rng), _jitter(paper, rng)
    image = Image.new("RGB", (WIDTH, HEIGHT), paper)
    draw = ImageDraw.Draw(image)
    left = (WIDTH - LETTER_WIDTH * len(word)) / 2
    for i, letter in enumerate(word):
        centre = (left + LETTER_WIDTH * (i + 0.5), HEIGHT / 2)
        draw.text(centre, letter, font=FONT, fill=ink, anchor="mm")
    return np.asarray(image)


def _jitter(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, ...]:
    return tuple(max(0, min(255, value + rng.randint(-JITTER, JITTER))) for value in colour)
