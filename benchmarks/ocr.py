"""How long the OCR engines take to read an image, and how often they are right.

    python benchmarks/ocr.py [--engine paddleocr --detector-dir DIR --recogniser-dir DIR]

One thread, drawn words; CPU milliseconds are those of the process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reward_services.ocr.engine import Engine
from reward_services.ocr.match import normalize
from reward_services.ocr.scorer import OcrSettings, joined_text, load_engine

WORDS = ("OPEN", "Tea", "MOON", "B12", "Sale", "Gate", "North", "FREE")
CASES = [  # width, height, font sizes, images, with detection
    (64, 32, (12, 18), 64, False),
    (64, 32, (12, 18), 32, True),
    (128, 128, (14, 28), 32, True),
    (256, 256, (20, 50), 16, True),
    (512, 512, (24, 100), 8, True),
    (1024, 1024, (40, 200), 4, True),
]


def drawn(
    width: int, height: int, font_size: int, word: str, rng: np.random.Generator
) -> np.ndarray:
    ink, paper = rng.integers(0, 90, 3), rng.integers(160, 256, 3)
    image = Image.new("RGB", (width, height), tuple(paper.tolist()))
    font = ImageFont.load_default(font_size)
    ImageDraw.Draw(image).text(
        (width / 2, height / 2), word, font=font, fill=tuple(ink.tolist()), anchor="mm"
    )
    noise = rng.normal(0, 4, (height, width, 3))
    return (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)


def measure(engine: Engine, images: Sequence[np.ndarray], words: Sequence[str]) -> str:
    engine.read(images[:1])
    wall, cpu = time.perf_counter(), time.process_time()
    readings = engine.read(images)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    texts = [normalize(joined_text(lines, 0.5)) for lines in readings]
    right = sum(text == normalize(word) for text, word in zip(texts, words, strict=True))
    per_image = 1000 / len(images)
    return f"{cpu * per_image:9.1f} {wall * per_image:9.1f} {right:6d} of {len(images)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="rapidocr")
    parser.add_argument("--detector-dir", type=Path)
    parser.add_argument("--recogniser-dir", type=Path)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value}
    rng = np.random.default_rng(0)
    print("image       detect    CPU ms   wall ms  exact")
    for width, height, font_sizes, count, detect in CASES:
        engine = load_engine(OcrSettings(detect=detect, threads=1, **given), "cpu")
        words = [WORDS[i % len(WORDS)] for i in range(count)]
        images = [
            drawn(width, height, font_sizes[i % len(font_sizes)], word, rng)
            for i, word in enumerate(words)
        ]
        size = f"{width} x {height}"
        print(f"{size:11s} {detect!s:6s} {measure(engine, images, words)}", flush=True)


if __name__ == "__main__":
    main()
