"""Minuscule pipelines of every family's real classes, random weights, in diffusers' folder layout.

8x8 images through a VAE of factor 2: latents (4, 4, 4), four image tokens.
"""

# diffusers annotates its arguments and results more narrowly than what it takes and gives
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import json
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

MODELS: dict[str, dict[str, Any]] = {
    "sd3": {"guidance": 4.5, "max_sequence_length": 0},
    "flux": {"guidance": 3.5, "max_sequence_length": 8},
    "qwen_image": {"guidance": 4.0, "max_sequence_length": 400},
    "z_image": {"guidance": 5.0, "max_sequence_length": 80},
    "flux2_klein": {"guidance": 4.0, "max_sequence_length": 80},
}
"""[model] of a recipe for each family, less its path. Qwen-Image's prompt comes after a template of
213 of these tokens, that of Z-Image and FLUX.2 after 17, so fewer would never reach it."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The template of Qwen3's tokenizer, as far as a prompt needs it."""


def build(family: str, folder: Path) -> Path:
    """Saves the family's pipeline under `folder` and returns where."""
    torch.manual_seed(0)
    BUILDERS[family](folder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def _sd3(folder: Path, side: int = 4, channels: int = 4, patch: int = 2) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer(folder / "vocab")
    text = _clip_config(len(tokenizer))
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=side,
            patch_size=patch,
            in_channels=channels,
            out_channels=channels,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=max(4, side // 2),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(channels),
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux(folder: Path, channels: int = 4) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

    tokenizer = _clip_tokenizer(folder / "vocab")
    letters = [(c, -1.0) for c in ["▁", *string.ascii_lowercase]]
    t5_tokenizer = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0
    )
    t5 = T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=4 * channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
        vae=_vae(channels),
        text_encoder=CLIPTextModel(_clip_config(len(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=t5_tokenizer,
    )


def _qwen_image(folder: Path) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.1, 0.2, 0.0],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=tokenizer,
    )


def _z_image(folder: Path) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )
    from transformers import Qwen3Model

    tokenizer = _qwen_tokenizer(chat_template=CHAT)
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[4, 2, 2],
            axes_lens=[256, 64, 64],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=_vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=Qwen3Model(_qwen3_config(len(tokenizer), layers=2)),
        tokenizer=tokenizer,
    )


def _flux2_klein(folder: Path) -> Any:
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3ForCausalLM

    tokenizer = _qwen_tokenizer(chat_template=CHAT)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    statistics: Any = vae.bn  # of an encoder's latents, which are not standardised by themselves
    statistics.running_mean.normal_()
    statistics.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=3 * 8,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        # what layers 9, 18 and 27 give is the text
        text_encoder=Qwen3ForCausalLM(_qwen3_config(len(tokenizer), layers=28)),
        tokenizer=tokenizer,
    )


def _sd3_published_latents(folder: Path, side: int = 64) -> Any:
    """Latents of SD3.5 at 512x512 (16, 64, 64), here of 128x128 images; layers as narrow as ever, and
    larger patches, so that tests take seconds."""
    return _sd3(folder, side=side, channels=16, patch=4)


BUILDERS: dict[str, Callable[[Path], Any]] = {
    "sd3": _sd3,
    "sd3_published_latents": _sd3_published_latents,
    "sd3_published_latents_1024": partial(_sd3_published_latents, side=128),
    "flux": _flux,
    "flux_published_latents": partial(_flux, channels=16),
    "qwen_image": _qwen_image,
    "z_image": _z_image,
    "flux2_klein": _flux2_klein,
}


def _vae(channels: int = 4, shift_factor: float = 0.0, scaling_factor: float = 1.0) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=shift_factor,
        scaling_factor=scaling_factor,
    )


def _qwen_tokenizer(**options: Any) -> Any:
    """One token per byte of what templates and prompts hold: "Ġ" and "Ċ" are the byte-level space and
    newline."""
    from transformers import Qwen2Tokenizer

    tokens = ["<|endoftext|>", *string.printable.strip(), "Ġ", "Ċ"]
    return Qwen2Tokenizer(vocab={c: i for i, c in enumerate(tokens)}, merges=[], **options)


def _qwen3_config(vocab_size: int, layers: int) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def _clip_config(vocab_size: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocab_size,
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


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
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
