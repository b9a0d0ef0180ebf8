"""UnifiedReward's v1 checkpoints, as LLaVA-NeXT's code saves them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_judges
from reward_api.errors import ItemFailure
from reward_services.chassis.weights import WeightsError
from reward_services.unifiedreward.engine_local import LocalEngine
from reward_services.unifiedreward.settings import UnifiedRewardSettings

IMAGE = np.random.default_rng(5).integers(0, 256, (48, 48, 3), np.uint8)


def load(folder, **settings) -> LocalEngine:
    own = UnifiedRewardSettings(weights=str(folder), **{"image_size": 384, **settings})
    return LocalEngine(own, str(folder), "cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder, and its weights under transformers' names."""
    folder = tmp_path_factory.mktemp("llava_next")
    return folder, tiny_judges.llava_next(folder)


@pytest.fixture
def changed(published, tmp_path):
    """Another such folder, whose files may be replaced."""
    for path in published[0].iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def replace_config(folder, change):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.unlink()
    path.write_text(json.dumps(config))


def test_every_tensor_finds_its_place_and_the_judge_answers(published):
    folder, weights = published
    engine = load(folder, max_tokens=8)
    loaded = engine._model.state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(loaded[name], tensor), name
    assert engine._model.config.text_config.rope_parameters["rope_theta"] == 1000000.0

    question = engine.question(IMAGE, "<image>\nHow good?")
    _, chat = question
    assert chat == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nHow good?<|im_end|>\n<|im_start|>assistant\n"
    )
    (answer,) = engine.answer([question])
    assert not isinstance(answer, ItemFailure)
    assert answer.is_cut

    processor = engine._processor
    assert processor.tokenizer.convert_ids_to_tokens([258, 259]) == ["<|im_end|>", "<image>"]
    inputs = processor(text=[chat], images=[[question[0]]], return_tensors="pt")
    # SigLIP: pixels from -1 to 1; one crop of 27 x 27 patches over the whole, one as the grid's only
    # cell, whose rows end in a newline.
    assert inputs["pixel_values"].shape == (1, 2, 3, 384, 384)
    assert -1.0 <= inputs["pixel_values"].min() < -0.9
    assert 0.9 < inputs["pixel_values"].max() <= 1.0
    assert (inputs["input_ids"] == 259).sum() == 27 * 27 + 27 * 28


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "vision tower is 'openai"),
        ({"vocab_size": 260}, "no room"),
    ],
)
def test_another_architecture_is_refused(changed, change, message):
    replace_config(changed, change)
    with pytest.raises(WeightsError, match=message):
        load(changed)


def test_missing_tensors_are_refused(changed):
    path = changed / "model.safetensors"
    weights = load_file(path)
    del weights["model.mm_projector.2.bias"]
    path.unlink()
    save_file(weights, path)
    with pytest.raises(WeightsError, match=r"lacks 1 tensors, among them .*linear_2\.bias"):
        load(changed)
