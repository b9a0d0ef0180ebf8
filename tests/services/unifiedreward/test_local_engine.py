"""The judge in process: tiny checkpoints in the real layouts, through the real loading path."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import tiny_judges
from processes import environment
from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore
from reward_services.chassis.scorer import Sample
from reward_services.unifiedreward.engine_local import LocalEngine
from reward_services.unifiedreward.scorer import SCORER
from reward_services.unifiedreward.settings import UnifiedRewardSettings

BUILDERS = [tiny_judges.qwen2_5_vl, tiny_judges.qwen3_vl, tiny_judges.llava_onevision]
PIXELS = np.random.default_rng(3).integers(0, 256, (4, 60, 90, 3), np.uint8)


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda builder: builder.__name__)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    request.param(folder)
    return folder


def engine_of(folder, **settings) -> LocalEngine:
    settings = UnifiedRewardSettings(weights=str(folder), **settings)
    return LocalEngine(settings, str(folder), "cpu")


def test_a_batch_answers_as_its_items_do_alone(folder):
    """Different lengths of text and, without image_size, of image."""
    engine = engine_of(folder, max_tokens=10, image_size=None)
    texts = ["hi", "a much longer question than the first", "<image>\nof middle length"]
    images = [PIXELS[0], PIXELS[1][:40], PIXELS[2][:, :50]]
    questions = [engine.question(image, text) for image, text in zip(images, texts, strict=True)]
    together = engine.answer(questions)
    assert together == [engine.answer([question])[0] for question in questions]
    assert len({answer.text for answer in together if not isinstance(answer, ItemFailure)}) > 1


def test_the_image_mark_in_a_prompt_is_that_items_error(folder):
    engine = engine_of(folder)
    with pytest.raises(ItemFailure, match="mark of an image") as caught:
        engine.question(PIXELS[0], "a <image> <|image_pad|> of a cat")
    assert caught.value.reason == Reason.SCHEMA


def test_from_checkpoint_to_score(tmp_path):
    """A judge that was taught its answer scores the image; others get what it happens to say."""
    tiny_judges.qwen2_5_vl(tmp_path)
    settings = UnifiedRewardSettings(
        family="v1", weights=str(tmp_path), max_tokens=40, image_size=56
    )
    scorer = SCORER(settings)
    scorer.load("cpu")
    image, chat = scorer.prepare(Sample(PIXELS[0], "a red cube"))
    tiny_judges.teach(tmp_path, chat, image, "Final Score: 4.5")

    scorer = SCORER(settings)
    scorer.load("cpu")
    prepared = scorer.prepare(Sample(PIXELS[0], "a red cube"))
    (score,) = scorer.score([Sample(PIXELS[0], "a red cube", prepared=prepared)])
    assert isinstance(score, ItemScore)
    assert score.scores == {"strict": 0.9, "flow_grpo": 0.9, "rating": 4.5}
    assert scorer.info().revision != ""
    assert "sha256:" in scorer.info().description


def test_a_random_judge_gives_errors_and_no_scores(folder):
    scorer = SCORER(UnifiedRewardSettings(weights=str(folder), max_tokens=8, image_size=64))
    scorer.load("cpu")
    samples = [Sample(image, "a cat") for image in PIXELS[:2]]
    prepared = [Sample(s.image, s.prompt, prepared=scorer.prepare(s)) for s in samples]
    for failure in scorer.score(prepared):
        assert isinstance(failure, ItemFailure)
        assert failure.reason == Reason.JUDGE_PARSE
        assert "cut off at max_tokens" in failure.message


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_precision_is_a_setting(folder, dtype):
    engine = engine_of(folder, dtype=dtype, max_tokens=8)
    expected = {"auto": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    assert engine._model.dtype == expected
    (answer,) = engine.answer([engine.question(PIXELS[0], "hi")])
    assert not isinstance(answer, ItemFailure)
    assert answer.is_cut


def test_without_engine_and_transformers_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"--engine-url.*unifiedreward-local"):
        SCORER(UnifiedRewardSettings()).load("cpu")


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--weights", "/absent/judge"], 2, "there is no file or folder"),
        (
            ["--engine-url", "http://127.0.0.1:9/v1"],
            1,
            "no engine answers at http://127.0.0.1:9/v1",
        ),
        (["--prompt-file", "/absent/prompt"], 2, "cannot be read"),
    ],
)
def test_a_start_without_a_judge_ends_with_one_line(tmp_path, flags, status, message):
    ports = ["--http-port", "0", "--grpc-port", "none", "--log-level", "error"]
    done = subprocess.run(
        [sys.executable, "-m", "reward_services", "unifiedreward", *flags, *ports],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
