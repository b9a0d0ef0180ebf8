"""The real RapidOCR networks on drawn images."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from reward_services.ocr.engine import detection_scale
from reward_services.ocr.rapidocr_engine import RapidOcrEngine, recogniser_width
from reward_services.ocr.scorer import joined_text


@pytest.fixture(scope="module")
def engine() -> RapidOcrEngine:
    return RapidOcrEngine("cpu", detect=True, min_side=128, threads=1)


@pytest.fixture(scope="module")
def line_engine() -> RapidOcrEngine:
    return RapidOcrEngine("cpu", detect=False, min_side=128, threads=1)


def text_of(lines) -> str:
    return "".join(line.text for line in lines).replace(" ", "")


@pytest.mark.parametrize(
    ("size", "font_size"), [((64, 32), 18), ((128, 64), 24), ((300, 90), 40), ((512, 512), 70)]
)
@pytest.mark.parametrize("word", ["MOON", "Tea7"])
def test_reads_a_word_at_every_size(draw, engine, size, font_size, word):
    (lines,) = engine.read([draw(word, size, font_size)])
    assert text_of(lines) == word
    (line,) = lines
    assert line.confidence > 0.5
    xs, ys = zip(*line.box, strict=True)
    assert 0 <= min(xs) < size[0] / 2 < max(xs) <= size[0]
    assert 0 <= min(ys) < size[1] / 2 < max(ys) <= size[1]


def test_lines_come_in_reading_order_also_in_tiny_images(draw, engine):
    readings = engine.read(
        [draw(["Lucky", "Star"], (96, 40), 15), draw(["North", "Gate", "B12"], (256, 256), 40)]
    )
    assert [[line.text for line in lines] for lines in readings] == [
        ["Lucky", "Star"],
        ["North", "Gate", "B12"],
    ]


def test_recognition_only_takes_the_image_as_one_line(draw, line_engine):
    (lines,) = line_engine.read([draw("SALE", (64, 32), 20)])
    assert [line.text for line in lines] == ["SALE"]
    assert lines[0].box == ((0.0, 0.0), (64.0, 0.0), (64.0, 32.0), (0.0, 32.0))


def test_the_networks_see_blue_green_red(draw, engine, monkeypatch):
    seen = []
    run = engine._recogniser.resize_norm_img
    monkeypatch.setattr(
        engine._recogniser,
        "resize_norm_img",
        lambda crop, ratio: seen.append(crop) or run(crop, ratio),
    )
    (lines,) = engine.read([draw("RED", (128, 64), 36, ink=(255, 255, 255), paper=(230, 0, 10))])
    assert text_of(lines) == "RED"
    blue, green, red = seen[0].min(axis=(0, 1))
    assert red > 200
    assert max(blue, green) < 40


def test_the_channel_order_reaches_the_reading(draw, line_engine):
    image = draw("MOON", (64, 32), 18, ink=(0, 96, 200), paper=(200, 60, 0))
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    ((line,),) = line_engine.read([image])
    assert (line.text, line.confidence) == line_engine._recognise(bgr)
    assert (line.text, line.confidence) != line_engine._recognise(image)


@pytest.mark.parametrize("size", [(64, 32), (512, 512), (1, 1), (2000, 8), (8, 700)])
def test_a_blank_image_has_no_text(engine, size):
    (lines,) = engine.read([np.full((size[1], size[0], 3), 200, np.uint8)])
    assert lines == []


def test_noise_has_no_sure_text(engine):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    (lines,) = engine.read([noise])
    assert joined_text(lines, 0.5) == ""


@pytest.mark.parametrize("detect", [True, False])
def test_a_reading_does_not_depend_on_its_neighbours(draw, engine, line_engine, detect):
    chosen = engine if detect else line_engine
    images = [
        draw("MOON", (64, 32), 18),
        draw("Welcome Home", (192, 40), 24),
        draw("Tea", (64, 64), 24),
        np.full((32, 64, 3), 99, np.uint8),
    ]
    alone = [chosen.read([image])[0] for image in images]
    assert chosen.read(images) == alone
    assert chosen.read(images[::-1]) == alone[::-1]


def test_threads_change_nothing(draw, line_engine):
    images = [draw(word, (64, 32), 18) for word in ("MOON", "GATE", "B12", "Free")]
    with_threads = RapidOcrEngine("cpu", detect=False, min_side=128, threads=3)
    assert with_threads.read(images) == line_engine.read(images)


def test_loading_is_silent_and_needs_no_network(capfd, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("RapidOCR asked for the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    RapidOcrEngine("cpu", detect=True, min_side=128, threads=1)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("RapidOCR").level == logging.ERROR


def test_cuda_is_refused_where_the_runtime_has_none():
    with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
        RapidOcrEngine("cuda", detect=True, min_side=128, threads=1)


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(512, 512, 1), (32, 64, 4), (128, 300, 1), (1024, 1024, 0.9375), (8, 960, 1), (10, 480, 2)],
)
def test_detection_scale(height, width, scale):
    assert detection_scale(height, width, 128) == scale


@pytest.mark.parametrize(
    ("height", "width", "columns"),
    [(32, 64, 96), (32, 16, 96), (48, 97, 128), (48, 320, 320), (8, 8192, 3200), (500, 1, 96)],
)
def test_recogniser_width(height, width, columns):
    assert recogniser_width(height, width) == columns


def test_jpeg_artefacts_do_not_change_a_clear_reading(draw, engine):
    file = io.BytesIO()
    Image.fromarray(draw("Museum", (256, 128), 48)).save(file, format="JPEG", quality=75)
    (lines,) = engine.read([np.asarray(Image.open(file))])
    assert text_of(lines) == "Museum"
