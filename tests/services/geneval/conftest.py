"""A detector that finds rectangles by their color, and a tiny CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from geneval_clip import write_open_clip
from reward_services.chassis.weights import fetch_weights
from reward_services.geneval.classes import CLASSES
from reward_services.geneval.detections import Detections
from reward_services.geneval.scorer import GenevalScorer, GenevalSettings

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]

INKS: dict[Color, str] = {
    (200, 30, 30): "cup",
    (180, 60, 30): "cup",
    (30, 30, 200): "dog",
    (30, 120, 30): "cat",
}


class Rectangles:
    """Each ink of an image is one object, of the class that INKS gives it."""

    identity = "rectangles"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def detect_prepared(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> Detections:
        masks, labels, boxes = [], [], []
        for ink, name in INKS.items():
            mask = (image == ink).all(axis=2)
            if not mask.any():
                continue
            rows, columns = np.nonzero(mask)
            boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            masks.append(mask)
            labels.append(CLASSES.index(name))
        return Detections(
            np.array(labels, np.int64),
            np.linspace(0.99, 0.95, len(labels), dtype=np.float32),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(masks, bool).reshape(-1, *image.shape[:2]),
        )


def _draw(*objects: tuple[Color, Box], size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """(H, W, 3) uint8 on grey; `size` is (width, height), boxes are x0 y0 x1 y1."""
    image = np.full((size[1], size[0], 3), 127, np.uint8)
    for ink, (x0, y0, x1, y1) in objects:
        image[y0:y1, x0:x1] = ink
    return image


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_open_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def make_scorer(clip_folder: Path):
    """A reward with settings of choice, ready to score: real colors, rectangles as objects."""

    def make(**settings) -> GenevalScorer:
        scorer = GenevalScorer(GenevalSettings(clip_weights=str(clip_folder), **settings))
        scorer.detector = Rectangles()
        scorer.load_classifier(fetch_weights(str(clip_folder), files=["open_clip*"]), "cpu")
        return scorer

    return make


@pytest.fixture(scope="session")
def reward(make_scorer) -> GenevalScorer:
    return make_scorer()
