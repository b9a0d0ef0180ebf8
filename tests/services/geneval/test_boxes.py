"""Which boxes count and how they lie, against geneval's script."""

import json
from pathlib import Path

import numpy as np
import pytest

from reward_services.geneval.boxes import kept_boxes, overlap, relations

UNITS = json.loads((Path(__file__).parents[2] / "golden" / "geneval_units.json").read_text())


def box(numbers: list[float]) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_relations_equal_the_originals():
    for case in UNITS["relative_position"]:
        assert sorted(relations(box(case["a"]), box(case["b"]))) == sorted(case["rel"]), case


def test_overlaps_equal_the_originals():
    for case in UNITS["iou"]:
        found = overlap(box(case["a"]), box(case["b"]))
        assert found == pytest.approx(case["iou"], rel=1e-6), case


def test_kept_boxes_equal_the_originals():
    for case in UNITS["nms"]:
        numbers = np.array(case["boxes"], np.float32).reshape(-1, 5)
        options = {key: case[key] for key in ("threshold", "max_objects", "max_overlap")}
        assert kept_boxes(numbers[:, :4], numbers[:, 4], **options) == case["kept"], case


def test_equal_scores_come_last_first():
    scores = np.full(3, 0.5, np.float32)
    assert kept_boxes(np.zeros((3, 4), np.float32), scores, threshold=0.3) == [2, 1, 0]
