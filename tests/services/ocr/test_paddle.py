"""The real PaddleOCR, in the environment that has it (`make test-paddle`).

PaddleOCR and RapidOCR want different OpenCV packages, so they are not installed together. Here
PaddleOCR runs the PP-OCRv6 networks out of RapidOCR's wheel (installed without its dependencies and
never imported), in PaddleOCR's own folder layout.
"""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from reward_services.chassis.scorer import Sample
from reward_services.ocr import scorer as ocr

if importlib.util.find_spec("paddleocr") is None:
    pytest.skip("paddleocr is not installed here: make test-paddle", allow_module_level=True)

# PaddleX and what it imports warn about each other's interfaces.
pytestmark = pytest.mark.filterwarnings("ignore")

DETECTOR, RECOGNISER = "PP-OCRv6_small_det", "PP-OCRv6_small_rec"

DETECTOR_STEPS = {
    "transform_ops": [
        {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
        {"DetResizeForTest": {"resize_long": 960}},
        {
            "NormalizeImage": {
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "order": "hwc",
                "scale": "1./255.",
            }
        },
        {"ToCHWImage": None},
    ]
}
DETECTOR_RESULT = {
    "name": "DBPostProcess",
    "thresh": 0.3,
    "box_thresh": 0.6,
    "max_candidates": 1000,
    "unclip_ratio": 1.5,
}
RECOGNISER_STEPS = {
    "transform_ops": [
        {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
        {"RecResizeImg": {"image_shape": [3, 48, 320]}},
    ]
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """PaddleOCR folders (inference.onnx beside inference.yml) of RapidOCR's two networks."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        pytest.skip("the networks are in RapidOCR's wheel: pip install --no-deps rapidocr")
    wheel = Path(spec.origin).parent / "models"
    root = tmp_path_factory.mktemp("paddle")
    alphabet = _alphabet(wheel / "PP-OCRv6_rec_small.onnx")
    decoder = {"name": "CTCLabelDecode", "character_dict": alphabet}
    models = [
        (DETECTOR, "PP-OCRv6_det_small.onnx", DETECTOR_STEPS, DETECTOR_RESULT),
        (RECOGNISER, "PP-OCRv6_rec_small.onnx", RECOGNISER_STEPS, decoder),
    ]
    for name, file, steps, result in models:
        folder = root / name
        folder.mkdir()
        shutil.copy(wheel / file, folder / "inference.onnx")
        config = {"Global": {"model_name": name}, "PreProcess": steps, "PostProcess": result}
        # JSON is YAML.
        (folder / "inference.yml").write_text(json.dumps(config))
    return {"detector_dir": root / DETECTOR, "recogniser_dir": root / RECOGNISER}


def _alphabet(model: Path) -> list[str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["character"].splitlines()


def load(folders: dict[str, Path], **settings) -> ocr.OcrScorer:
    scorer = ocr.SCORER(ocr.OcrSettings(engine="paddleocr", threads=1, **folders, **settings))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def reward(folders) -> ocr.OcrScorer:
    return load(folders)


@pytest.fixture(scope="module")
def line_reward(folders) -> ocr.OcrScorer:
    return load(folders, detect=False)


def text_of(lines) -> str:
    return "".join(line.text for line in lines).replace(" ", "")


@pytest.mark.parametrize(
    ("size", "font_size"), [((64, 32), 18), ((128, 64), 24), ((300, 90), 40), ((512, 512), 70)]
)
@pytest.mark.parametrize("word", ["MOON", "Tea7"])
def test_reads_a_word_at_every_size(draw, reward, size, font_size, word):
    (lines,) = reward.engine.read([draw(word, size, font_size)])
    assert text_of(lines) == word
    (line,) = lines
    assert line.confidence > 0.5
    xs, ys = zip(*line.box, strict=True)
    assert 0 <= min(xs) < size[0] / 2 < max(xs) <= size[0]
    assert 0 <= min(ys) < size[1] / 2 < max(ys) <= size[1]


def test_recognition_only_takes_the_image_as_one_line(draw, line_reward):
    (lines,) = line_reward.engine.read([draw("SALE", (64, 32), 20)])
    assert [line.text for line in lines] == ["SALE"]


def test_the_channel_order_is_bgr(draw, line_reward):
    """What PaddleOCR reads in the BGR array is what we read in the RGB one."""
    image = draw("MOON", (64, 32), 18, ink=(0, 96, 200), paper=(200, 60, 0))
    model = line_reward.engine._model
    (as_bgr,) = model.predict(np.ascontiguousarray(image[:, :, ::-1]), batch_size=1)
    (as_rgb,) = model.predict(image, batch_size=1)
    ((line,),) = line_reward.engine.read([image])
    assert (line.text, line.confidence) == (as_bgr["rec_text"], as_bgr["rec_score"])
    assert line.confidence != as_rgb["rec_score"]


def test_lines_come_in_reading_order(draw, reward):
    (lines,) = reward.engine.read([draw(["North", "Gate", "B12"], (256, 256), 40)])
    assert [line.text for line in lines] == ["North", "Gate", "B12"]


@pytest.mark.parametrize("size", [(64, 32), (512, 512), (1, 1), (2000, 8), (8, 700)])
def test_a_blank_image_has_no_text(reward, size):
    (lines,) = reward.engine.read([np.full((size[1], size[0], 3), 200, np.uint8)])
    assert lines == []


@pytest.mark.parametrize("chosen", ["reward", "line_reward"])
def test_a_reading_does_not_depend_on_its_neighbours(draw, request, chosen):
    engine = request.getfixturevalue(chosen).engine
    images = [draw("MOON", (64, 32), 18), draw(["Welcome Home", "Tea"], (192, 80), 24)]
    alone = [engine.read([image])[0] for image in images]
    assert engine.read(images) == alone
    assert engine.read(images[::-1]) == alone[::-1]


def test_the_reward_on_drawn_images(draw, reward):
    prompts = ['a sign that says "Open"', 'a sign that says "Opel"', 'a sign that says "Tea"']
    image = draw("Open", (128, 64), 30)
    samples = [Sample(image, p, include_details=True) for p in prompts]
    samples = [dataclasses.replace(s, prepared=reward.prepare(s)) for s in samples]
    results = reward.score(samples)
    assert [result.value for result in results] == [1.0, 0.75, 0.0]
    assert results[0].details["engine"].startswith(f"{DETECTOR}+{RECOGNISER} paddleocr==3")


def test_cuda_is_refused_where_the_runtime_has_none(folders):
    scorer = ocr.SCORER(ocr.OcrSettings(engine="paddleocr", **folders))
    with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
        scorer.load("cuda:0")


@pytest.mark.skipif(importlib.util.find_spec("paddle") is not None, reason="paddle is installed")
def test_a_missing_runtime_is_named(folders):
    scorer = ocr.SCORER(ocr.OcrSettings(engine="paddleocr", runtime="paddle", **folders))
    with pytest.raises(ImportError, match="pip install paddlepaddle"):
        scorer.load("cpu")


def test_the_papers_networks_are_known_to_paddleocr():
    from paddlex.inference.utils.official_models import OCR_MODELS

    assert {"PP-OCRv3_mobile_det", "en_PP-OCRv4_mobile_rec"} <= set(OCR_MODELS)
