"""Adapters that do not fit, wholly or in part, are refused, whatever their layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flow_trainer.errors import ConfigError, NonFiniteError
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from policy_steps import CPU, changed

OWN, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
State = dict[str, Tensor]


def load(recipe_data: dict[str, Any], **model: Any) -> Policy:
    recipe = changed(recipe_data, "model", tuning="lora", lora_rank=2, lora_alpha=4, **model)
    return load_policy(recipe.model, CPU, with_reference=False)


@pytest.fixture
def trained(recipe_data: dict[str, Any]) -> Policy:
    policy = load(recipe_data)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.normal_(std=0.3)
    return policy


def put(folder: Path, layout: str, state: State, metadata: dict[str, str] | None) -> str:
    """An adapter's folder in one of the two layouts, from names in diffusers' one."""
    folder.mkdir()
    if layout == "diffusers":
        save_file(state, folder / OWN, metadata)
        return str(folder)
    save_file(
        {k.replace("transformer.", "base_model.model.", 1): v for k, v in state.items()},
        folder / PEFT,
    )
    targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    ]
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": [f"attn.{target}" for target in targets],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def renamed(change: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {change(name): value for name, value in state.items()}


def halved(state: State) -> State:
    return dict(list(state.items())[: len(state) // 2])


def one(value: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, next(iter(state)): value}


WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "no prefix": (renamed(lambda name: "x." + name.split(".", 1)[1]), "do not begin with"),
    "another model": (renamed(lambda name: name.replace("attn", "attention")), "names differ"),
    "half of it": (halved, "names differ"),
    "one more": (lambda s: {**s, "transformer.other.lora_A.weight": torch.ones(2, 2)}, "differ"),
    "kohya's alpha": (lambda s: {**s, "transformer.other.alpha": torch.ones(1)}, "differ"),
    "a text encoder's": (lambda s: {**s, "text_encoder.q.lora_A.weight": torch.ones(1)}, "begin"),
    "another shape": (one(torch.ones(3, 16)), "size mismatch|shape"),
    "empty": (lambda state: {}, "do not begin with"),
}


@pytest.mark.parametrize("layout", ["diffusers", "diffusers without metadata", "peft"])
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(
    case: str, layout: str, trained: Policy, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    change, message = WRONG[case]
    trained.save(tmp_path / "own")
    state = load_file(tmp_path / "own" / OWN)
    with safe_open(tmp_path / "own" / OWN, "pt") as file:
        metadata = None if "without" in layout else file.metadata()
    fitting = put(tmp_path / "right", layout.split()[0], state, metadata)
    found = load(recipe_data, adapter=fitting).trainable().values()
    assert all(map(torch.equal, found, trained.trainable().values()))
    wrong = put(tmp_path / "wrong", layout.split()[0], change(state), metadata)
    with pytest.raises(ConfigError, match=message) as raised:
        load(recipe_data, adapter=wrong)
    assert f"model.adapter = {wrong!r}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_names_that_carry_the_adapters_name_load(
    trained: Policy, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    trained.save(tmp_path / "own")
    state = load_file(tmp_path / "own" / OWN)
    for layout, name in (("diffusers", "default_0"), ("peft", "default")):
        named = {key.replace(".weight", f".{name}.weight"): value for key, value in state.items()}
        found = load(recipe_data, adapter=put(tmp_path / layout, layout, named, None))
        assert all(map(torch.equal, found.trainable().values(), trained.trainable().values()))


def test_weights_that_are_not_finite_are_named(
    trained: Policy, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    with torch.no_grad():
        next(iter(trained.trainable().values())).fill_(float("nan"))
    trained.save(tmp_path)
    with pytest.raises(NonFiniteError, match=r"model\.adapter: .*lora_A.* not finite"):
        load(recipe_data, adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither"),
        ({"adapter_config.json": "{", PEFT: ""}, "Expecting property name"),
        ({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.bin": "x"}, "is a pickle"),
        ({"adapter_config.json": '{"peft_type": "LORA"}'}, f"has no {PEFT}"),
        ({OWN: "x" * 100}, "header"),
        ({OWN: ""}, "header"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    files: dict[str, str], message: str, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(recipe_data, adapter=str(tmp_path))
