"""Near-duplicates by perceptual hash: 64 bits of the lowest frequencies of an image's brightness."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np
from PIL import Image

BITS = 64
_SIDE, _KEPT = 32, 8


def _cosines() -> np.ndarray:
    """(KEPT, SIDE): the DCT-II's frequencies 1 to KEPT; the mean, frequency 0, says nothing."""
    k, n = np.arange(1, _KEPT + 1)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE))


_COSINES = _cosines()


def perceptual_hash(pixels: np.ndarray) -> int:
    """64 bits of an image (H, W, 3) uint8, which re-encoding and resizing hardly change: whether each of
    8 x 8 low frequencies lies above their median (pHash)."""
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    frequencies = (_COSINES @ np.asarray(grey, float) @ _COSINES.T).round(6)  # 0 for a plain image
    bits = (frequencies > np.median(frequencies)).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class Likeness:
    """Hashes seen so far, found again when one differs in `distance` bits or fewer.

    Two such hashes agree in at least one of `distance` + 1 bands of bits, so that only those that share a
    band are compared. A hash takes some 40 bytes.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        edges = np.linspace(0, BITS, distance + 2).astype(int).tolist()
        self._bands = list(pairwise(edges))
        self._hashes = array("Q")
        # per band, a chain for each value: where it begins, and which hash comes next
        self._first: list[dict[int, int]] = [{} for _ in self._bands]
        self._next = [array("q") for _ in self._bands]

    def find(self, value: int) -> int | None:
        """The number of the first hash added that is as near; None without one."""
        best = None
        for (low, high), first, following in zip(self._bands, self._first, self._next, strict=True):
            number = first.get(value >> low & ((1 << (high - low)) - 1), -1)
            while number >= 0:
                near = (self._hashes[number] ^ value).bit_count() <= self._distance
                if near and (best is None or number < best):
                    best = number
                number = following[number]
        return best

    def add(self, value: int) -> int:
        """Its number, counted from 0."""
        number = len(self._hashes)
        self._hashes.append(value)
        for (low, high), first, following in zip(self._bands, self._first, self._next, strict=True):
            place = value >> low & ((1 << (high - low)) - 1)
            following.append(first.get(place, -1))
            first[place] = number
        return number
