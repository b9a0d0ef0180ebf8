"""CLIP's preprocessing against vectors made by transformers and open_clip."""

import json
from pathlib import Path

import numpy as np
import pytest

from reward_api.errors import ItemFailure, Reason
from reward_services.clip.device import model_pixels
from reward_services.clip.pixels import check_aspect, clip_crop, clip_normalise

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/clip_preprocess.json").read_text())
CASES = GOLDEN["cases"]


def image_of(case: dict) -> np.ndarray:
    width, height = case["size_wh"]
    y, x, c = np.ogrid[:height, :width, :3]
    return ((7 * x + 13 * y + 29 * c + x * y // 5 + 31 * case["k"]) % 256).astype(np.uint8)


@pytest.mark.parametrize(("route", "crop"), [("hf_processor", "floor"), ("open_clip", "round")])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["size_wh"])))
def test_pixels_equal_the_originals(case, route, crop):
    expected = case[route]
    pixels = clip_normalise([clip_crop(image_of(case), crop=crop)])[0]
    assert list(pixels.shape) == expected["shape"]
    assert pixels.dtype == np.float32
    for channel, y, x, value in expected["samples"]:
        assert pixels[channel, y, x] == pytest.approx(value, abs=2e-6)
    assert pixels.mean(dtype=np.float64) == pytest.approx(expected["mean"], abs=1e-6)
    assert pixels.std(dtype=np.float64, ddof=1) == pytest.approx(expected["std"], abs=1e-6)


def test_a_batch_is_its_images_side_by_side():
    crops = [clip_crop(image_of(case)) for case in CASES[:3]]
    assert np.array_equal(clip_normalise(crops)[1], clip_normalise([crops[1]])[0])


def test_the_device_normalises_number_for_number():
    crops = np.stack([clip_crop(image_of(case)) for case in CASES[:3]])
    expected = clip_normalise(list(crops))
    found = model_pixels(crops, "cpu")
    assert np.array_equal(found.numpy(), expected)
    assert found.is_contiguous()
    assert np.array_equal(model_pixels(expected, "cpu").numpy(), expected)


def test_strips_are_refused_before_they_grow():
    check_aspect(np.zeros((64, 1, 3), np.uint8))
    with pytest.raises(ItemFailure, match="1 x 65 pixels") as caught:
        check_aspect(np.zeros((65, 1, 3), np.uint8))
    assert caught.value.reason is Reason.IMAGE_SHAPE
