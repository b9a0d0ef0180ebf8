"""How far the images of one prompt are apart. Numpy only: benchmarks and reports use it too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import mean

import numpy as np


def image_diversity(images: np.ndarray, prompts: Sequence[str]) -> float:
    """Root mean square pixel difference, in [0, 1], of two images of one prompt: the mean over a
    prompt's pairs, then over the prompts that have two. Colours weigh most in it.

    `images` are (N, H, W, 3) uint8; `prompts` has one per image, in any order. Raises ValueError when
    no prompt has two."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return mean(_mean_difference(images[own]) for own in rows.values() if len(own) > 1)


def _mean_difference(images: np.ndarray) -> float:
    """Of all pairs of at least two images (n, H, W, 3)."""
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    return mean(float(np.sqrt(np.square(a - b).mean())) for a, b in combinations(pixels, 2))
