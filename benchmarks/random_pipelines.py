"""Pipelines of published shapes with random weights, made on the device itself: nothing is downloaded.

Tokenizers know letters only and text encoders are as random as the rest: for time and memory, not
for images.
"""

# diffusers and transformers annotate their arguments more narrowly than what they take
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import json
import string
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flow_trainer.models.architectures import ARCHITECTURES

MODELS = {
    "sd35m": ("sd3", "stabilityai/stable-diffusion-3.5-medium"),
    "sd35l": ("sd3", "stabilityai/stable-diffusion-3.5-large"),
    "flux": ("flux", "black-forest-labs/FLUX.1-dev"),
}
SHRUNK = {
    "sd3": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "dual_attention_layers": (0,),
        "joint_attention_dim": 256,
        "pooled_projection_dim": 2 * 64,
        "pos_embed_max_size": 32,
    },
    "flux": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "joint_attention_dim": 256,
        "pooled_projection_dim": 64,
    },
}
"""The same transformers at a size for CPUs."""


def random_pipeline(
    name: str, device: torch.device, dtype: torch.dtype, *, shrunk: bool = False
) -> Any:
    """The pipeline of a model of MODELS; `shrunk`: fewer and narrower layers, same structure."""
    import diffusers

    family, path = MODELS[name]
    class_name, config = ARCHITECTURES[path]
    if shrunk:
        config = {**config, **SHRUNK[family]}
    with _made_on(device, dtype):
        torch.manual_seed(0)
        transformer = getattr(diffusers, class_name).from_config(config)
        text = _sd3_text(shrunk) if family == "sd3" else _flux_text(shrunk)
        vae = _vae(shrunk)
    shift: dict[str, Any] = {"shift": 3.0}
    if family == "flux":
        shift |= {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    pipeline = {
        "sd3": diffusers.StableDiffusion3Pipeline,
        "flux": diffusers.FluxPipeline,
    }[family]
    return pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        **text,
    )


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype):
    """Inside, layers are created on the device in their final type: no second copy ever exists."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _vae(shrunk: bool) -> Any:
    from diffusers import AutoencoderKL

    channels = (8, 8, 8, 8) if shrunk else (128, 256, 512, 512)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1 if shrunk else 2,
        latent_channels=16,
        norm_num_groups=4 if shrunk else 32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5305,
    )


def _sd3_text(shrunk: bool) -> dict[str, Any]:
    """CLIP-L, CLIP-G and T5-XXL."""
    return {
        **_clip("", 768, 12, shrunk, projection=True),
        **_clip("_2", 1280, 32, shrunk, projection=True),
        **_t5("_3", shrunk),
    }


def _flux_text(shrunk: bool) -> dict[str, Any]:
    return {**_clip("", 768, 12, shrunk, projection=False), **_t5("_2", shrunk)}


def _clip(suffix: str, width: int, layers: int, shrunk: bool, *, projection: bool) -> dict:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, layers = (64, 2) if shrunk else (width, layers)
    config = CLIPTextConfig(
        vocab_size=64 if shrunk else 49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    encoder = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    return {f"text_encoder{suffix}": encoder.eval(), f"tokenizer{suffix}": _clip_tokenizer()}


def _t5(suffix: str, shrunk: bool) -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    config = T5Config(
        vocab_size=64 if shrunk else 32128,
        d_model=256 if shrunk else 4096,
        d_kv=64,
        d_ff=64 if shrunk else 10240,
        num_layers=1 if shrunk else 24,
        num_heads=1 if shrunk else 64,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    letters = [(c, -1.0) for c in ["▁", *string.ascii_lowercase]]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    return {
        f"text_encoder{suffix}": T5EncoderModel(config).eval(),
        f"tokenizer{suffix}": T5Tokenizer(vocab=vocab, extra_ids=0),
    }


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [c + end for c in string.ascii_lowercase for end in ("", "</w>")]
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
        (folder / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            unk_token="<|endoftext|>",
            pad_token="<|endoftext|>",
            model_max_length=77,
        )


def _write_json(path: Path, values: Mapping[str, int]) -> None:
    path.write_text(json.dumps(values))
