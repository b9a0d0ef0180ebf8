"""A minuscule SD3 pipeline of the real classes, saved in diffusers' folder layout."""

# diffusers annotates its arguments and results more narrowly than what it takes and gives
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.config import Recipe, parse_recipe
from flow_trainer.models import Policy, load_policy


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8x8 images through a VAE of factor 2: latents (4, 4, 4), random weights."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3")
    tokenizer = _tokenizer(folder / "vocab")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=4,
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0,
            scaling_factor=1.0,
        ),
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir()
    tokens = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [c + end for c in string.ascii_lowercase for end in ("", "</w>")]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=16,
    )


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("red\ngreen\nblue\nblack\nwhite\n")
    return path


@pytest.fixture
def recipe_data(pipeline_folder: Path, prompts_file: Path) -> dict[str, Any]:
    """Sections of a recipe that trains the minuscule model; change what the test is about."""
    return {
        "name": "tiny",
        "seed": 3,
        "epochs": 3,
        "device": "cpu",
        "model": {
            "path": str(pipeline_folder),
            "height": 8,
            "width": 8,
            "guidance": 1.0,
            "max_sequence_length": 0,
            "tuning": "full",
        },
        "prompts": {"train": str(prompts_file)},
        "sampling": {
            "num_steps": 4,
            "prompts_per_epoch": 2,
            "group_size": 4,
            "micro_batch": 4,
        },
        "rewards": {"bright": {"url": "http://127.0.0.1:1"}},
        "update": {"learning_rate": 1e-3, "clip_range": 1e-3},
        "ema": {"interval": 1},
        "evaluation": {"every": 0, "num_steps": 4},
        "checkpoints": {"every": 1, "keep": 2},
        "logging": {"tensorboard": False, "image_every": 0},
    }


@pytest.fixture
def recipe(recipe_data: dict[str, Any]) -> Recipe:
    return parse_recipe(recipe_data)


@pytest.fixture
def policy(recipe: Recipe) -> Policy:
    return load_policy(recipe.model, torch.device("cpu"), with_reference=True)
