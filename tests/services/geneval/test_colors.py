"""The texts and pixels that the color classifier gets, against geneval's."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from reward_services.geneval.colors import BACKGROUND, COLORS, color_texts, object_crop

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "geneval_color_inputs.json").read_text()
)


def test_the_palette_is_geneval_s():
    assert list(COLORS) == GOLDEN["palette"]
    assert "#{:02x}{:02x}{:02x}".format(*BACKGROUND) == GOLDEN["background"]


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: case["class"])
def test_texts_equal_the_originals(case):
    for color in COLORS:
        texts = color_texts(case["class"], color)
        assert texts == [template.replace("{c}", color) for template in case["templates"]]
        if case["texts"] is not None:
            assert texts == case["texts"][color]


@pytest.mark.parametrize("case", GOLDEN["crops"])
def test_crops_equal_the_originals(case):
    width, height = case["size"]
    image = np.frombuffer(base64.b64decode(case["rgb_b64"]), np.uint8).reshape(height, width, 3)
    mask = None
    if case["mask_b64_packbits"] is not None:
        bits = np.frombuffer(base64.b64decode(case["mask_b64_packbits"]), np.uint8)
        mask = np.unpackbits(bits, count=width * height).reshape(height, width).astype(bool)
    crop = object_crop(image, np.array(case["box"][:4], np.float32), mask)
    assert list(crop.shape[1::-1]) == case["crop_size"]
    if case["crop_rgb_b64"] is not None:
        assert crop.tobytes() == base64.b64decode(case["crop_rgb_b64"])
    assert hashlib.sha256(crop.tobytes()).hexdigest() == case["crop_sha256"]
