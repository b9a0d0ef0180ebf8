"""JPEG compressibility against flow_grpo's figures."""

import json
from pathlib import Path

import numpy as np
import PIL.features
import pytest

from reward_services.chassis.scorer import Sample
from reward_services.jpeg.scorer import SCORER, JpegSettings

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "jpeg.json").read_text())


def golden_image(kind: str, width: int, height: int, k: int) -> np.ndarray:
    if kind == "flat":
        return np.full((height, width, 3), 40 * k, np.uint8)
    if kind == "noise":
        return np.random.RandomState(k).randint(0, 256, (height, width, 3), dtype=np.uint8)
    y, x, c = np.ogrid[:height, :width, :3]
    return ((7 * x + 13 * y + 29 * c + x * y // 5 + 31 * k) % 256).astype(np.uint8)


def case_image(case: dict) -> np.ndarray:
    width, height = case["size_wh"]
    return golden_image(case["kind"], width, height, case["k"])


@pytest.fixture
def scorer():
    scorer = SCORER(JpegSettings())
    scorer.load("cpu")
    return scorer


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['kind']}-{c['size_wh'][0]}")
def test_sizes_equal_the_originals(scorer, case):
    (result,) = scorer.score([Sample(case_image(case))])
    # To the digit with the library of Pillow's wheels; another one's files differ a little.
    tolerance = 0 if PIL.features.check("libjpeg_turbo") else 0.01
    expected = {
        "compressibility": case["compressibility"],
        "incompressibility_kb": case["incompressibility_kB"],
    }
    assert result.scores == pytest.approx(expected, rel=tolerance, abs=0)
    assert result.value == result.scores["compressibility"]


def test_the_main_score_is_a_setting():
    scorer = SCORER(JpegSettings(score="incompressibility_kb"))
    flat, noise = scorer.score(
        [Sample(golden_image(kind, 64, 64, 1)) for kind in ("flat", "noise")]
    )
    assert 0 < flat.value < noise.value
    assert noise.scores["compressibility"] == -noise.value / 500
    assert scorer.info().score.name == "incompressibility_kb"


def test_read_only_images_are_scored(scorer):
    image = golden_image("noise", 33, 57, 0)
    image.flags.writeable = False
    assert scorer.score([Sample(image)]) == scorer.score([Sample(image.copy())])


def test_info_names_what_the_score_depends_on(scorer):
    info = scorer.info()
    assert [score.name for score in info.sub_scores] == ["compressibility", "incompressibility_kb"]
    assert info.score.maximum == 0
    assert not info.prompt_required
    assert "pillow-" in info.revision
