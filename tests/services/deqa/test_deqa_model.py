"""mPLUG-Owl2 against the original's figures, at a tiny size; its names at the published size."""

import numpy as np
import pytest
import torch

from deqa_checkpoint import GOLDEN, llama_shapes, rule_image, rule_tensors, write_deqa
from reward_services.chassis.weights import WeightsError
from reward_services.clip.pixels import clip_normalise
from reward_services.deqa import checkpoint, prompt
from reward_services.deqa.abstractor import position_tables
from reward_services.deqa.config import Config, read_config
from reward_services.deqa.decoder import KeysValues
from reward_services.deqa.levels import level, probabilities
from reward_services.deqa.model import NO_IMAGE, Judge, MplugOwl2

INDEX = "model.safetensors.index.json"
PIXELS = clip_normalise([rule_image(k) for k in range(4)])
LEVEL_IDS = GOLDEN["level_token_ids_excellent_to_bad"]


@pytest.fixture
def model(tmp_path):
    write_deqa(tmp_path, tensors=rule_tensors(), vocab_size=320)
    return load(tmp_path)


def load(folder, dtype=torch.float32, index=INDEX) -> MplugOwl2:
    config = read_config(folder / "config.json")
    return checkpoint.load(config, folder / index, "cpu", dtype)


def assert_samples(states, samples, tolerance):
    """states (rows, columns) at [row, column, value]."""
    found = [float(states[row, column]) for row, column, _ in samples]
    assert found == pytest.approx([value for *_, value in samples], abs=tolerance)


def outputs_of(layers):
    """What the layers put out, filled by the next forward."""
    outputs = []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    return outputs


@torch.inference_mode()
def test_the_image_side_equals_the_originals_in_float64(model):
    model.double()
    vision, abstractor = model.model.vision_model, model.model.visual_abstractor
    seen = outputs_of([vision.embeddings, *vision.encoder.layers, *abstractor.encoder.layers])
    mean, std = np.array(GOLDEN["mean"]), np.array(GOLDEN["std"])
    exact = np.stack([(rule_image(k) / 255 - mean) / std for k in range(4)]).astype(np.float32)
    pixels = torch.from_numpy(exact.transpose(0, 3, 1, 2).astype(np.float64))
    features = vision(pixels)
    rows = abstractor(features)
    names = ["vision_embeddings_after_pre_layernorm", "vision_layer_0", "vision_layer_1"]
    names += ["abstractor_layer_0", "abstractor_layer_1", "vision_features", "abstractor_output"]
    for name, states in zip(names, [*seen, features, rows], strict=True):
        for case in GOLDEN["image_side"]:
            assert_samples(states[case["image"]], case[name]["samples"], 1e-10)
    assert list(rows.shape[1:]) == GOLDEN["image_side"][0]["abstractor_output"]["shape"]


@torch.inference_mode()
@pytest.mark.parametrize("name", GOLDEN["sequences"])
def test_the_decoder_equals_the_originals(model, name):
    ids = GOLDEN["sequences"][name]
    at = ids.index(-200)
    image = model.image_rows(torch.from_numpy(PIXELS))
    before, after = (model.text_rows(part).expand(4, -1, -1) for part in (ids[:at], ids[at + 1 :]))
    rows = torch.cat([before, image, after], 1)
    layers = outputs_of(model.model.layers)
    states = model.decode(rows, slice(at, at + image.shape[1]))
    normed = model.model.norm(states)
    logits = model.lm_head(normed)
    for run in (run for run in GOLDEN["runs"] if run["sequence"] == name):
        item = run["image"]
        assert logits.shape[1] == run["length_after_expansion"]
        for index, (output, _) in enumerate(layers):
            assert_samples(output[item], run[f"decoder_layer_{index}"]["samples"], 1e-4)
        assert_samples(normed[item], run["final_norm"]["samples"], 1e-4)
        last = [[-1, *sample] for sample in run["logits_last"]]
        assert_samples(logits[item], [*last, *run["logits_other_positions"]], 1e-4)
        found = probabilities(logits[item, -1, LEVEL_IDS].numpy())
        assert found == pytest.approx(run["level_probabilities"], abs=1e-5)
        assert level(found) == pytest.approx(run["score_1_5"], abs=1e-4)


@torch.inference_mode()
def test_text_alone_equals_the_originals(model):
    golden = GOLDEN["text_only"]
    states = model.decode(model.text_rows(golden["input_ids"]), NO_IMAGE)
    logits = model.lm_head(model.model.norm(states))[0]
    assert_samples(logits, [[-1, *sample] for sample in golden["logits_last"]], 1e-4)


@torch.inference_mode()
def test_rows_decoded_before_the_image_are_the_same_as_with_it(model):
    ids, image = GOLDEN["sequences"]["image_in_the_middle"], slice(6, 15)
    pictures = model.image_rows(torch.from_numpy(PIXELS))
    before, after = model.text_rows(ids[:6]), model.text_rows(ids[7:]).expand(4, -1, -1)
    whole = model.decode(torch.cat([before.expand(4, -1, -1), pictures, after], 1), image)
    past: list[KeysValues] = []
    model.decode(before, NO_IMAGE, keep=past)
    rest = model.decode(torch.cat([pictures, after], 1), slice(0, 9), past)
    torch.testing.assert_close(rest, whole[:, 6:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_judge_asks_the_real_question(tmp_path):
    write_deqa(tmp_path)
    model = load(tmp_path)
    logits = Judge(model).level_logits(PIXELS)
    real = GOLDEN["real_prompt"]
    assert [*prompt.BEFORE_IMAGE, -200, *prompt.AFTER_IMAGE] == real["input_ids"]
    assert dict(zip(real["level_words"], real["level_ids"], strict=True)) == prompt.LEVELS
    image = model.image_rows(torch.from_numpy(PIXELS))
    before = model.text_rows(prompt.BEFORE_IMAGE).expand(4, -1, -1)
    after = model.text_rows(prompt.AFTER_IMAGE).expand(4, -1, -1)
    states = model.decode(torch.cat([before, image, after], 1), slice(15, 15 + image.shape[1]))
    expected = model.lm_head(model.model.norm(states))[:, -1, real["level_ids"]]
    assert logits == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.ptp(logits, axis=0).min() > 1e-3  # the images matter


def test_the_position_tables_equal_the_originals(model):
    tables = position_tables(model.config.abstractor, model.config.vision.grid)
    for name, samples in GOLDEN["buffer_samples"].items():
        assert_samples(tables[name], samples, 0)


def test_position_tables_of_the_checkpoint_win(tmp_path):
    names = [buffer["name"] for buffer in GOLDEN["buffers"]]
    tables = {buffer["name"]: torch.full(buffer["shape"], 0.5) for buffer in GOLDEN["buffers"]}
    write_deqa(tmp_path, tensors=rule_tensors() | tables, vocab_size=320)
    state = load(tmp_path).state_dict()
    assert all((state[name] == 0.5).all() for name in names)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bin_shards_and_half_precision(tmp_path, dtype):
    tensors = {name: tensor.half() for name, tensor in rule_tensors(llama_shapes()).items()}
    unused = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    write_deqa(tmp_path, tensors=tensors | unused, form="bin")
    model = load(tmp_path, dtype, "pytorch_model.bin.index.json")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    rated = level(probabilities(Judge(model).level_logits(PIXELS)))
    model.float()
    exact = level(probabilities(Judge(model).level_logits(PIXELS)))
    assert rated == pytest.approx(exact, abs=0.02 if dtype == torch.float16 else 0.2)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), {}, "lacks 1 tensors, first model.norm.weight"),
        (lambda t: t.update(extra=torch.ones(1)), {}, "unknown 1 tensors, first extra"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), {}, r"norm.weight is \[3\]"),
        (lambda t: None, {"hidden_act": "gelu"}, "has hidden_act gelu: only silu is"),
        (lambda t: None, {"num_key_value_heads": 2}, "num_key_value_heads 2: only 4 is"),
        (lambda t: None, {"rope_scaling": {"factor": 2}}, "has rope_scaling"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path, change, config, message):
    tensors = rule_tensors()
    change(tensors)
    write_deqa(tmp_path, tensors=tensors, **({"vocab_size": 320} | config))
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)


def test_an_empty_config_is_the_published_model(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"visual_config": {"visual_abstractor": {"grid_size": null}}}'
    )
    assert read_config(tmp_path / "config.json") == Config()


def test_published_names_and_sizes():
    """The 862 entries of the published state dict, without memory."""
    with torch.device("meta"):
        model = MplugOwl2(Config())
    assert {name: list(t.shape) for name, t in model.state_dict().items()} == published_shapes()
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_197_859_328
    assert sum(buffer.numel() for buffer in model.buffers()) == 6_690_816


@torch.inference_mode()
def test_the_real_question_has_92_rows():
    """At the published size, on the meta device: 15 of text, 64 + 1 of the image, 12 of text."""
    with torch.device("meta"):
        model = MplugOwl2(Config())
        image = model.image_rows(torch.empty(2, 3, 448, 448))
    assert image.shape == (2, 65, 4096)
    before, kept = [], []
    model.decode(model.text_rows(prompt.BEFORE_IMAGE), NO_IMAGE, keep=before)
    after = model.text_rows(prompt.AFTER_IMAGE).expand(2, -1, -1)
    states = model.decode(torch.cat([image, after], 1), slice(0, 65), before, kept)
    assert states.shape == (2, 77, 4096)
    assert [keys.shape for keys, _ in kept] == [(2, 32, 92, 128)] * 32


def published_shapes() -> dict[str, list[int]]:
    vision, abstractor = "model.vision_model.", "model.visual_abstractor."
    shapes = {
        "model.embed_tokens.weight": [32000, 4096],
        "model.norm.weight": [4096],
        "lm_head.weight": [32000, 4096],
        f"{vision}embeddings.cls_token": [1, 1, 1024],
        f"{vision}embeddings.position_embedding": [1, 1025, 1024],
        f"{vision}embeddings.patch_embed.weight": [1024, 3, 14, 14],
        f"{abstractor}query_embeds": [1, 64, 1024],
        f"{abstractor}vit_eos": [1, 1, 4096],
    }
    norms = {f"{vision}embeddings.pre_layernorm": 1024, f"{vision}post_layernorm": 1024}
    linears = {f"{abstractor}visual_fc": (4096, 1024)}
    for layer in (f"model.layers.{i}." for i in range(32)):
        for way in ("0", "1"):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{layer}{norm}.multiway.{way}.weight"] = [4096]
            for projection in ("k_proj", "v_proj"):
                shapes[f"{layer}self_attn.{projection}.multiway.{way}.weight"] = [4096, 4096]
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [4096, 4096] for name in "qo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": [11008, 4096] for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = [4096, 11008]
    for layer in (f"{vision}encoder.layers.{i}." for i in range(24)):
        linears[f"{layer}self_attn.query_key_value"] = (3072, 1024)
        linears[f"{layer}self_attn.dense"] = (1024, 1024)
        linears |= {f"{layer}mlp.fc1": (4096, 1024), f"{layer}mlp.fc2": (1024, 4096)}
        norms |= {f"{layer}{name}_layernorm": 1024 for name in ("input", "post_attention")}
    for layer in (f"{abstractor}encoder.layers.{i}.crossattention." for i in range(6)):
        shapes |= {f"{layer}attention.q_pos_embed": [64, 1024]}
        shapes |= {f"{layer}attention.k_pos_embed": [1025, 1024]}
        for name in ("attention.query", "attention.key", "attention.value", "output.out_proj"):
            linears[f"{layer}{name}"] = (1024, 1024)
        linears |= {f"{layer}output.mlp.{name}": (2816, 1024) for name in ("w1", "w3")}
        linears[f"{layer}output.mlp.w2"] = (1024, 2816)
        norms |= {f"{layer}{name}": 1024 for name in ("norm1", "normk", "output.norm2")}
        norms[f"{layer}output.mlp.ffn_ln"] = 2816
    for name, width in norms.items():
        shapes |= {f"{name}.weight": [width], f"{name}.bias": [width]}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": list(shape), f"{name}.bias": [shape[0]]}
    return shapes
