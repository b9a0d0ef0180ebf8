"""Sampling, prompts and adapters on real diffusers classes with random weights."""

# diffusers annotates its arguments and results more narrowly than what it takes and gives
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flow_trainer.errors import ConfigError
from flow_trainer.loop.rollout import generate
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe
from policy_steps import CPU, PROMPTS, changed, sample


def test_rollout_keeps_the_window(policy: Policy, recipe_data: dict[str, Any]) -> None:
    recipe = changed(
        recipe_data, "sampling", num_steps=6, window={"kind": "first", "lo": 1, "size": 2}
    )
    samples, images = sample(policy, recipe)
    assert samples.window == range(1, 3)
    assert samples.latents.shape == (8, 3, 4, 4, 4)
    assert samples.log_probs.shape == (8, 2)
    assert samples.latents.dtype == torch.float32
    assert images.shape == (8, 8, 8, 3)
    assert images.dtype == torch.uint8


@pytest.mark.parametrize("dynamics", ["flow_sde", "cps", "dance_sde"])
def test_results_do_not_depend_on_the_batch_split(
    policy: Policy, recipe_data: dict[str, Any], dynamics: str
) -> None:
    whole, whole_images = sample(
        policy, changed(recipe_data, "sampling", dynamics=dynamics, micro_batch=8)
    )
    split, split_images = sample(
        policy, changed(recipe_data, "sampling", dynamics=dynamics, micro_batch=3, decode_batch=2)
    )
    torch.testing.assert_close(split.latents, whole.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(split.log_probs, whole.log_probs, atol=1e-5, rtol=1e-5)
    assert int((split_images.int() - whole_images.int()).abs().max()) <= 1


def test_the_vae_keeps_all_its_bits(recipe_data: dict[str, Any], pipeline_folder: Path) -> None:
    sixteen = changed(recipe_data, "model", dtype="float16", autocast_on_cpu=True)
    policy: Any = load_policy(sixteen.model, CPU, with_reference=False)
    stored = load_file(pipeline_folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(tensor.half().float(), tensor) for tensor in stored.values())
    for name, tensor in policy._vae.state_dict().items():
        assert torch.equal(tensor, stored[name]), name


def test_guidance_is_the_published_combination(recipe_data: dict[str, Any]) -> None:
    plain = load_policy(
        changed(recipe_data, "model", guidance=1.0).model, CPU, with_reference=False
    )
    guided = load_policy(
        changed(recipe_data, "model", guidance=4.5).model, CPU, with_reference=False
    )
    x, sigma = torch.randn(2, *plain.latent_shape), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        v_c = plain.velocity(x, sigma, plain.encode(["red", "blue"]))
        v_u = plain.velocity(x, sigma, plain.encode(["", ""]))
        found = guided.velocity(x, sigma, guided.encode(["red", "blue"]))
    torch.testing.assert_close(found, v_u + 4.5 * (v_c - v_u), atol=1e-5, rtol=1e-5)


def test_ode_sampling_equals_the_stock_pipeline(
    policy: Policy, recipe: Recipe, pipeline_folder: Path
) -> None:
    from diffusers import StableDiffusion3Pipeline

    from flow_trainer.algorithm.noise import evaluation_noise

    images: list[torch.Tensor] = []
    generate(policy, recipe, PROMPTS, 5, 1, lambda rows, batch: images.append(batch))
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = evaluation_noise(recipe.seed, [(0, 0), (1, 0)], policy.latent_shape)
    stock = pipeline(
        [prompt.text for prompt in PROMPTS],
        height=8,
        width=8,
        num_inference_steps=5,
        guidance_scale=1.0,
        max_sequence_length=0,
        latents=noise,
        output_type="np",
    ).images
    assert np.abs(torch.cat(images).numpy() - stock * 255).max() <= 1.0


def test_prompts_are_encoded_once_and_encoders_released(policy: Policy) -> None:
    first = policy.encode(["red", "blue", "red"])
    assert torch.equal(first.tokens[0], first.tokens[2])
    assert policy.prepare_prompts(["red", "blue"]).fits
    again = policy.encode(["blue"])
    assert torch.equal(again.tokens[0], first.tokens[1])
    with pytest.raises(RuntimeError, match="not cached"):
        policy.encode(["green"])


def test_prompts_beyond_the_cache_are_encoded_as_they_come(recipe_data: dict[str, Any]) -> None:
    recipe = changed(recipe_data, "model", prompt_cache_gb=1e-9)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    words = ["red", "green", "blue", "black"] * 20
    assert not policy.prepare_prompts([f"{word} {n}" for n, word in enumerate(words)]).fits
    first = policy.encode(["red"])
    policy.encode(["green", "blue"])
    assert torch.equal(policy.encode(["blue", "red"]).tokens[1], first.tokens[0])


def test_adapter_loads_into_a_stock_pipeline(
    recipe_data: dict[str, Any], pipeline_folder: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusion3Pipeline

    recipe = changed(recipe_data, "model", tuning="lora", lora_rank=2)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    policy.save(tmp_path / "adapter")
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None
    )
    pipeline.load_lora_weights(tmp_path / "adapter")
    conditioning = policy.encode(["red"])
    x, sigma = torch.randn(1, *policy.latent_shape), torch.tensor([0.5])
    with torch.no_grad():
        stock = pipeline.transformer(
            hidden_states=x,
            timestep=sigma * 1000,
            encoder_hidden_states=conditioning.tokens,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]
        torch.testing.assert_close(policy.velocity(x, sigma, conditioning), stock)


def test_bad_models_are_explained(recipe_data: dict[str, Any], tmp_path: Path) -> None:
    for values, message in (
        ({"path": str(tmp_path)}, "does not load as a StableDiffusion3Pipeline"),
        ({"height": 10}, "must be multiples of 4"),
    ):
        recipe = changed(recipe_data, "model", **values)
        with pytest.raises(ConfigError, match=message):
            load_policy(recipe.model, CPU, with_reference=False)
