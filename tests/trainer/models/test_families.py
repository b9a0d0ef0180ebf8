"""The same tests on every model family: real diffusers classes, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from flow_trainer.algorithm.noise import evaluation_noise, sample_noise
from flow_trainer.loop.ratio import measure_ratio
from flow_trainer.loop.rollout import generate, rollout
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families.packing import pack
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, parse_recipe
from flow_trainer.recipe.prompts import Prompt
from tiny_pipelines import MODELS, build

CPU = torch.device("cpu")
PROMPTS = [Prompt("red"), Prompt("a blue hat")]
TEXTS = [prompt.text for prompt in PROMPTS]


@pytest.fixture(scope="module", params=list(MODELS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(family, tmp_path_factory.mktemp(family))


@pytest.fixture
def data(family: str, folder: Path, recipe_data: dict[str, Any]) -> dict[str, Any]:
    model = {
        "family": family,
        "path": str(folder),
        "height": 8,
        "width": 8,
        "lora_rank": 2,
        "lora_alpha": 4,
        **MODELS[family],
    }
    return {**recipe_data, "model": model}


@pytest.fixture
def recipe(data: dict[str, Any]) -> Recipe:
    return parse_recipe(data)


@pytest.fixture
def policy(recipe: Recipe) -> Policy:
    return load_policy(recipe.model, CPU, with_reference=True)


def stock(policy: Policy, folder: Path) -> Any:
    """The family's own pipeline, as diffusers loads it."""
    assert isinstance(policy, DiffusersPolicy)
    options = policy._family.load_options(policy._config)
    pipeline = policy._family.pipeline_class.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_passed(x: torch.Tensor, family: str) -> torch.Tensor:
    """Latents as the family's pipeline takes them."""
    if family in ("sd3", "z_image"):
        return x
    tokens = pack(x)
    if family == "flux2_klein":  # patches in the channels of an image a quarter as large
        return tokens.mT.reshape(len(x), -1, x.shape[2] // 2, x.shape[3] // 2)
    return tokens


def stock_samples(
    pipeline: Any, family: str, noise: torch.Tensor, scale: float | None = None, **output: Any
) -> Any:
    """`scale`: of the guidance, instead of the family's."""
    values = MODELS[family]
    if scale is None:
        scale = float(values["guidance"])
    guidance: dict[str, Any] = {"guidance_scale": scale}
    if family == "qwen_image":
        guidance = {"true_cfg_scale": scale, "negative_prompt": ["", ""]}
    if family == "z_image":  # v_prompt + s (v_prompt - v_0)
        guidance = {"guidance_scale": scale - 1}
    return pipeline(
        prompt=list(TEXTS),  # Z-Image writes into it
        height=2 * noise.shape[2],
        width=2 * noise.shape[3],
        num_inference_steps=4,
        max_sequence_length=values["max_sequence_length"],
        latents=as_passed(noise, family),
        **guidance,
        **output,
    ).images


def shake(policy: Policy) -> None:
    """Trained weights as after training: nothing is zero any more."""
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(0.3 * torch.randn_like(parameter))


def velocity(policy: Policy) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *policy.latent_shape), generator=generator)
    with torch.no_grad():
        return policy.velocity(x, torch.tensor([0.9, 0.3]), policy.encode(TEXTS))


def test_ode_rollout_equals_the_stock_pipeline(
    data: dict[str, Any], family: str, folder: Path
) -> None:
    sampling = {"num_steps": 4, "dynamics": "ode", "prompts_per_epoch": 2, "group_size": 2}
    recipe = parse_recipe({**data, "sampling": sampling, "update": {"objective": "nft"}})
    policy = load_policy(recipe.model, CPU, with_reference=False)
    assert isinstance(policy, DiffusersPolicy)
    shake(policy)
    images: list[torch.Tensor] = []
    samples = rollout(policy, recipe, 0, PROMPTS, [4, 7], lambda rows, batch: images.append(batch))
    first = [0, 2]  # member 0 of each prompt
    noise, _ = sample_noise(recipe.seed, 0, [(4, 0), (7, 0)], policy.latent_shape, 0)
    adapter = folder.parent / "adapter"
    policy.save(adapter)
    pipeline = stock(policy, folder)
    pipeline.load_lora_weights(adapter)
    latents = stock_samples(pipeline, family, noise, output_type="latent")
    ours = as_passed(samples.x_0[first], family)
    if family == "flux2_klein":  # its pipeline gives what the VAE decodes
        ours = policy._family.unscale(policy._vae, samples.x_0[first])
    torch.testing.assert_close(ours, latents.float(), atol=1e-4, rtol=1e-4)
    pixels = stock_samples(pipeline, family, noise, output_type="np")
    found = torch.cat(images)[first].numpy()
    assert np.abs(found - pixels * 255).max() <= 1.0


def test_a_wide_image_without_guidance_equals_the_stock_pipeline(
    data: dict[str, Any], family: str, folder: Path
) -> None:
    scale = MODELS["flux"]["guidance"] if family == "flux" else 1.0  # an input of the model
    model = {**data["model"], "width": 16, "guidance": scale}
    recipe = parse_recipe({**data, "model": model})
    policy = load_policy(recipe.model, CPU, with_reference=False)
    assert policy.latent_shape == (4, 4, 8)
    images: list[torch.Tensor] = []
    generate(policy, recipe, PROMPTS, 4, 1, lambda rows, batch: images.append(batch))
    noise = evaluation_noise(recipe.seed, [(0, 0), (1, 0)], policy.latent_shape)
    pixels = stock_samples(stock(policy, folder), family, noise, scale, output_type="np")
    assert np.abs(torch.cat(images).numpy() - pixels * 255).max() <= 1.0


def test_the_prompt_reaches_the_model(policy: Policy) -> None:
    x, sigma = torch.randn(1, *policy.latent_shape), torch.tensor([0.5])
    with torch.no_grad():
        red, blue = (policy.velocity(x, sigma, policy.encode([text])) for text in TEXTS)
    assert (red - blue).abs().max() > 1e-4


def test_ratio_is_one_whatever_the_batch(policy: Policy, recipe: Recipe) -> None:
    shake(policy)
    report = measure_ratio(policy, recipe, PROMPTS)
    assert report.ok, report.explain()


def test_gradients_reach_every_trained_parameter(policy: Policy) -> None:
    shake(policy)
    x = torch.randn(2, *policy.latent_shape)
    v = policy.velocity(x, torch.tensor([0.9, 0.3]), policy.encode(TEXTS))
    v.square().mean().backward()
    idle = [name for name, p in policy.trainable().items() if p.grad is None or not p.grad.any()]
    # the last block's text stream ends there
    assert all(
        ".add_q_proj" in name or "to_add_out" in name or "context" in name or "txt_mlp" in name
        for name in idle
    ), idle
    assert len(idle) < len(policy.trainable()) / 2


def test_reference_is_the_model_without_adapter(policy: Policy, recipe: Recipe) -> None:
    start = velocity(policy)
    shake(policy)
    moved = velocity(policy)
    with policy.reference():
        torch.testing.assert_close(velocity(policy), start)
    assert not torch.allclose(moved, start)
    assert torch.equal(velocity(policy), moved)


def test_prompts_of_different_lengths_do_not_disturb_each_other(policy: Policy) -> None:
    x, sigma = torch.randn(2, *policy.latent_shape), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        together = policy.velocity(x, sigma, policy.encode(TEXTS))
        assert policy.prepare_prompts(TEXTS).fits
        for row, text in enumerate(TEXTS):
            part = slice(row, row + 1)
            alone = policy.velocity(x[part], sigma[part], policy.encode([text]))
            torch.testing.assert_close(together[part], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(RuntimeError, match="not cached"):
        policy.encode(["green"])


def test_published_and_own_adapters_load(
    policy: Policy, data: dict[str, Any], tmp_path: Path
) -> None:
    assert isinstance(policy, DiffusersPolicy)
    shake(policy)
    expected = velocity(policy)
    transformer = policy._tuning.transformer
    published = tmp_path / "published"
    published.mkdir()
    state = get_peft_model_state_dict(transformer)
    save_file(
        {f"base_model.model.{name}": value.contiguous() for name, value in state.items()},
        published / "adapter_model.safetensors",
    )
    config = transformer.peft_config["default"].to_dict()
    values = {
        "peft_type": "LORA",
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": 0.1,
        "target_modules": sorted(config["target_modules"]),
        "base_model_name_or_path": "somewhere/else",
    }
    (published / "adapter_config.json").write_text(json.dumps(values))
    policy.save(tmp_path / "own")
    for source in (published, tmp_path / "own"):
        # its rank, not the recipe's
        recipe = parse_recipe(
            {**data, "model": {**data["model"], "adapter": str(source), "lora_rank": 7}}
        )
        loaded = load_policy(recipe.model, CPU, with_reference=False)
        torch.testing.assert_close(velocity(loaded), expected)
        assert [p.shape for p in loaded.trainable().values()] == [
            p.shape for p in policy.trainable().values()
        ]
        loaded.save(tmp_path / "again")
