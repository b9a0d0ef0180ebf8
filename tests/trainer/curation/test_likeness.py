"""Near-duplicates: what the hash forgives, and that the search finds what a plain one would."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flow_trainer.curation.likeness import Likeness, perceptual_hash


def scene(seed: int, side: int = 128) -> Image.Image:
    """Random with the spectrum of photographs."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    plane = np.fft.irfft2(spectrum / frequency**1.2)
    plane = (plane - plane.mean()) / plane.std() * 45 + 128
    return Image.fromarray(plane.clip(0, 255).astype(np.uint8)).convert("RGB")


def distance(first: Image.Image, second: Image.Image) -> int:
    a, b = (perceptual_hash(np.asarray(image)) for image in (first, second))
    return (a ^ b).bit_count()


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_is_near_and_another_scene_is_not(seed: int) -> None:
    image = scene(seed)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    assert distance(image, Image.open(file)) <= 4
    assert distance(image, image.resize((60, 60), Image.Resampling.LANCZOS)) <= 4
    assert distance(image, image.filter(ImageFilter.GaussianBlur(1))) <= 4
    assert distance(image, scene(seed + 100)) > 12


def test_plain_images_are_alike_whatever_their_colour() -> None:
    assert distance(Image.new("RGB", (64, 48), "red"), Image.new("RGB", (80, 80), "navy")) == 0


@pytest.mark.parametrize("most", [0, 1, 4, 8])
def test_the_search_finds_what_a_comparison_with_all_finds(most: int) -> None:
    rng = random.Random(most)
    seeds = [rng.getrandbits(64) for _ in range(30)]
    values = []
    for _ in range(600):
        value = rng.choice(seeds)
        for bit in rng.sample(range(64), rng.randint(0, 10)):
            value ^= 1 << bit
        values.append(value)
    likeness, known = Likeness(most), []
    for value in values:
        near = [n for n, other in enumerate(known) if (value ^ other).bit_count() <= most]
        assert likeness.find(value) == (near[0] if near else None)
        if not near:
            assert likeness.add(value) == len(known)
            known.append(value)
