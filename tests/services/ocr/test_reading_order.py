"""Boxes in the order in which a person reads them, and real words through the real networks."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from reward_services.ocr.rapidocr_engine import RapidOcrEngine
from reward_services.ocr.reading_order import reading_order


def box(left, top, width, height, slant=0.0):
    rise = slant * width
    corners = [(left, top), (left + width, top + rise)]
    corners += [(x, y + height) for x, y in reversed(corners)]
    return np.array(corners, np.float32)


CASES = {
    "left lower by half a letter": ([box(560, 200, 300, 66), box(60, 230, 300, 66)], [1, 0]),
    "right lower": ([box(60, 200, 300, 66), box(560, 230, 300, 66)], [0, 1]),
    "two lines": ([box(0, 60, 200, 40), box(10, 0, 100, 40)], [1, 0]),
    "two lines that overlap a little": ([box(0, 34, 200, 40), box(40, 0, 100, 40)], [1, 0]),
    "tiny lines, closer than ten pixels": ([box(0, 8, 40, 7), box(10, 0, 40, 7)], [1, 0]),
    "a large word beside a small one": ([box(200, 20, 80, 30), box(0, 0, 150, 66)], [1, 0]),
    "slanted lines stay apart": (
        [box(0, 50, 400, 40, slant=0.18), box(0, 0, 400, 40, slant=0.18)],
        [1, 0],
    ),
    "a vertical word joins one line only": (
        [box(50, 0, 200, 40), box(50, 80, 200, 40), box(0, 0, 40, 130)],
        [0, 2, 1],
    ),
    "two by two": (
        [box(200, 95, 80, 40), box(0, 5, 80, 40), box(0, 100, 80, 40), box(200, 0, 80, 40)],
        [1, 3, 2, 0],
    ),
    "none": ([], []),
}


@pytest.mark.parametrize("case", CASES)
def test_order(case):
    boxes, order = CASES[case]
    assert reading_order(np.array(boxes).reshape(-1, 4, 2)) == order


@pytest.fixture(scope="module")
def engine() -> RapidOcrEngine:
    return RapidOcrEngine("cpu", detect=True, min_side=128, threads=1)


@pytest.mark.parametrize("lower", [0, 12, 30])
def test_words_of_one_line_at_different_heights(engine, lower):
    image = Image.new("RGB", (1024, 512), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(110)
    pen.text((60, 200 + lower), "HELLO", "black", font)
    pen.text((560, 200), "WORLD", "black", font)
    (lines,) = engine.read([np.asarray(image)])
    assert [line.text for line in lines] == ["HELLO", "WORLD"]
