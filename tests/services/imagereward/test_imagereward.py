"""ImageReward against the original's figures, and as a service on a tiny checkpoint."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast, BlipTextConfig, BlipVisionConfig  # pyright: ignore

from imagereward_checkpoint import (
    GOLDEN,
    rule_image,
    rule_tensors,
    write_imagereward,
    write_vocabulary,
)
from processes import Services, environment
from reward_api import RewardClient
from reward_api.errors import ItemFailure, Reason
from reward_services.chassis.scorer import Sample
from reward_services.chassis.weights import WeightsError
from reward_services.clip.pixels import clip_crop, clip_normalise
from reward_services.imagereward import model
from reward_services.imagereward.checkpoint import renamed, text_config, vision_config
from reward_services.imagereward.scorer import MEAN, SCORER, STD, ImageRewardSettings
from reward_services.imagereward.tokens import PromptTokenizer

TEXTS = {text["name"]: text for text in GOLDEN["texts"]}
IMAGES = [rule_image(image["size_wh"], image["k"]) for image in GOLDEN["images"]]
CUT = "a cat " * 40
PROMPTS = ["A red cat, sign of the dogs!", CUT, 'é 日本 [ENC] 🦊 "the"', "[DEC] a"]


def pixels_of(images) -> np.ndarray:
    return clip_normalise([clip_crop(image, crop="round") for image in images])


def prepared(scorer, image, prompt, include_details=False) -> Sample:
    ready = scorer.prepare(Sample(image, prompt))
    return Sample(image, prompt, include_details=include_details, prepared=ready)


def load(folder, tokenizer=None):
    scorer = SCORER(ImageRewardSettings(weights=str(folder), tokenizer=str(tokenizer or folder)))
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vocabulary(write_imagereward(tmp_path_factory.mktemp("imagereward")))


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


def test_pixels_equal_the_originals():
    pixels = pixels_of(IMAGES)
    for index, case in enumerate(GOLDEN["images"]):
        assert hashlib.sha256(IMAGES[index].tobytes()).hexdigest() == case["rgb_sha256"]
        samples = case["pixel_values"]["samples"]
        assert [pixels[index, c, y, x] for c, y, x, _ in samples] == [s[-1] for s in samples]


@pytest.fixture(scope="module", params=["main", "eps_probe"])
def golden_model(request, folder):
    """The original's tiny model (attention heads of 16) and what it answered."""
    is_probe = request.param == "eps_probe"
    tensors = renamed(rule_tensors(makes_eps_visible=is_probe))
    vision = vision_config(tensors, head_width=16)
    text = text_config(folder / "med_config.json", vision.hidden_size)
    answers = GOLDEN["eps_probe"] if is_probe else GOLDEN
    return model.assembled(vision, text, tensors), answers


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-6), ("float64", 1e-12)])
def test_rewards_equal_the_originals(golden_model, dtype, tolerance):
    reward, answers = golden_model
    reward.to(getattr(torch, dtype))
    pixels = pixels_of(IMAGES).astype(dtype)
    cases = answers["cases"]
    texts = [TEXTS[case["text"]] for case in cases]
    raw = reward.rewards(
        pixels[[case["image"] for case in cases]],
        [text["input_ids"] for text in texts],
        [text["attention_mask"] for text in texts],
    )
    of = {"float32": "", "float64": "_float64"}[dtype]
    expected = [case[f"reward_raw{of}"] for case in cases]
    assert raw == pytest.approx(expected, abs=tolerance)
    expected = [case[f"reward{of}"] for case in cases]
    assert [(r - MEAN) / STD for r in raw] == pytest.approx(expected, abs=tolerance)


def test_published_names_and_sizes():
    """A checkpoint with the key table of ImageReward.pt fits the model at its real size."""
    vision = BlipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=30524,
        hidden_size=768,
        encoder_hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        is_decoder=True,
    )
    with torch.device("meta"):
        reward = model.ImageReward(vision, text)
        tensors = {name: torch.empty(shape) for name, shape in published_shapes().items()}
    assert len(tensors) == 624 + 1
    kept = renamed(tensors)
    assert {name: tensor.shape for name, tensor in kept.items()} == {
        name: tensor.shape for name, tensor in reward.state_dict().items()
    }
    assert sum(tensor.numel() for tensor in kept.values()) == 303_301_632 + 141_977_088 + 927_969
    inferred = vision_config(kept)
    for size in ("hidden_size", "num_attention_heads", "num_hidden_layers", "image_size"):
        assert getattr(inferred, size) == getattr(vision, size)
    assert inferred.intermediate_size == 4096
    assert inferred.patch_size == 16


def published_shapes() -> dict[str, list[int]]:
    """facts: the 625 entries of ImageReward.pt."""
    vision, text = "blip.visual_encoder.", "blip.text_encoder."
    shapes = {
        f"{vision}cls_token": [1, 1, 1024],
        f"{vision}pos_embed": [1, 197, 1024],
        f"{vision}patch_embed.proj.weight": [1024, 3, 16, 16],
        f"{vision}patch_embed.proj.bias": [1024],
        f"{text}embeddings.position_ids": [1, 512],
        f"{text}embeddings.word_embeddings.weight": [30524, 768],
        f"{text}embeddings.position_embeddings.weight": [512, 768],
    }
    norms = {f"{vision}norm": 1024, f"{text}embeddings.LayerNorm": 768}
    linears = {"blip.vision_proj": (256, 1024), "blip.text_proj": (256, 768)}
    head = (768, 1024, 128, 64, 16, 1)
    for i, name in enumerate((0, 2, 4, 6, 7)):
        linears[f"mlp.layers.{name}"] = (head[i + 1], head[i])
    for layer in (f"{vision}blocks.{i}." for i in range(24)):
        norms |= {f"{layer}norm1": 1024, f"{layer}norm2": 1024}
        linears |= {f"{layer}attn.qkv": (3072, 1024), f"{layer}attn.proj": (1024, 1024)}
        linears |= {f"{layer}mlp.fc1": (4096, 1024), f"{layer}mlp.fc2": (1024, 4096)}
    for layer in (f"{text}encoder.layer.{i}." for i in range(12)):
        for attention, source in (("attention", 768), ("crossattention", 1024)):
            linears[f"{layer}{attention}.self.query"] = (768, 768)
            linears[f"{layer}{attention}.self.key"] = (768, source)
            linears[f"{layer}{attention}.self.value"] = (768, source)
            linears[f"{layer}{attention}.output.dense"] = (768, 768)
            norms[f"{layer}{attention}.output.LayerNorm"] = 768
        linears |= {f"{layer}intermediate.dense": (3072, 768), f"{layer}output.dense": (768, 3072)}
        norms[f"{layer}output.LayerNorm"] = 768
    for name, width in norms.items():
        shapes |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": list(shape), f"{name}.bias": [shape[0]]}
    return shapes


@pytest.mark.parametrize("prompt", ["", *PROMPTS])
def test_tokens_are_those_of_bert(folder, prompt):
    bert = BertTokenizerFast.from_pretrained(folder)
    bert.add_special_tokens({"bos_token": "[DEC]"})
    bert.add_tokens(["[ENC]"], special_tokens=True)
    expected = bert(prompt, padding="max_length", truncation=True, max_length=35)
    encoding = PromptTokenizer(folder / "vocab.txt").encode(prompt)
    assert encoding.ids == expected["input_ids"]
    assert encoding.attention_mask == expected["attention_mask"]
    assert len(encoding.ids) == 35
    assert encoding.ids[0] == 101


def test_a_strip_is_refused_before_it_takes_memory(scorer):
    with pytest.raises(ItemFailure) as caught:
        prepared(scorer, np.zeros((8, 8192, 3), np.uint8), "a cat")
    assert caught.value.reason == Reason.IMAGE_SHAPE


def test_a_pair_scores_the_same_alone_and_in_any_batch(scorer):
    pairs = list(zip(IMAGES, PROMPTS, strict=True))
    together = scorer.score([prepared(scorer, *pair) for pair in pairs])
    backwards = scorer.score([prepared(scorer, *pair) for pair in pairs[::-1]])[::-1]
    alone = [scorer.score([prepared(scorer, *pair)])[0] for pair in pairs]
    values = [[score.value for score in run] for run in (together, backwards, alone)]
    assert values[0] == pytest.approx(values[2], abs=1e-5)
    assert values[1] == pytest.approx(values[2], abs=1e-5)
    assert len({round(value, 3) for value in values[0]}) == 4


def test_scores_and_details(scorer):
    short, cut = scorer.score(
        [prepared(scorer, IMAGES[0], prompt, include_details=True) for prompt in ("a cat", CUT)]
    )
    assert short.value == short.scores["imagereward"]
    assert short.scores["raw"] == pytest.approx(short.value * STD + MEAN, abs=1e-12)
    assert (short.details, cut.details) == ({"prompt_is_cut": False}, {"prompt_is_cut": True})
    assert scorer.score([prepared(scorer, IMAGES[0], "a cat")])[0].details is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mlp.layers.7.bias"), r"lacks 1 tensors, first head\.7\.bias"),
        (lambda t: t.pop("blip.visual_encoder.pos_embed"), r"lacks 'vision\.embeddings\.pos"),
        (lambda t: t.update({"mlp.layers.9.bias": torch.ones(1)}), r"unknown 1 .*head\.9\.bias"),
        (lambda t: t.update({"mlp.layers.7.bias": torch.ones(2)}), r"other shapes of 1 .*head\.7"),
    ],
)
def test_another_checkpoint_is_refused(folder, tmp_path, change, message):
    tensors = torch.load(folder / "ImageReward.pt", weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_bytes((folder / "med_config.json").read_bytes())
    with pytest.raises(WeightsError, match=message):
        load(tmp_path, folder)


def test_names_of_a_data_parallel_checkpoint_are_read(folder, tmp_path, scorer):
    tensors = torch.load(folder / "ImageReward.pt", weights_only=True)
    renamed_tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save(renamed_tensors, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_bytes((folder / "med_config.json").read_bytes())
    other = load(tmp_path, folder)
    pair = IMAGES[1], "a cat"
    assert other.score([prepared(other, *pair)]) == scorer.score([prepared(scorer, *pair)])
    assert other.info().revision != scorer.info().revision


def test_another_vocabulary_is_refused(folder, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(WeightsError, match="has 8 tokens, the model 30524"):
        load(folder, tmp_path)


def test_http_and_grpc_give_the_scorers_values(services: Services, folder, scorer):
    expected = [
        scorer.score([prepared(scorer, *p)])[0].value for p in zip(IMAGES, PROMPTS, strict=True)
    ]
    service = services.start(
        "-m", "reward_services", "imagereward", "--weights", str(folder), "--tokenizer", str(folder)
    )
    for url in (service.http, service.grpc):
        with RewardClient(url) as client:
            assert client.score(IMAGES, PROMPTS).values == pytest.approx(expected, abs=1e-5)
            assert client.metadata().prompt_required


def test_without_weights_it_ends_with_one_line(tmp_path):
    command = [sys.executable, "-m", "reward_services", "imagereward", "--weights", str(tmp_path)]
    ports = ["--http-port", "0", "--grpc-port", "0"]
    ended = subprocess.run(
        [*command, *ports], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "holds no ImageReward.pt" in ended.stderr
    assert "Traceback" not in ended.stderr
