"""GPU memory that a recipe takes, from its numbers alone.

Memory is arithmetic, not a measurement; expect 30 % either way, most of it in the activations:

- transformer: 2 bytes per frozen parameter (4 in float32); 4 per trained one.
- training state per trained parameter, float32: gradient 4, AdamW's two moments 8 (2 in 8 bits), EMA
  4, the old policy of nft and awm 4; with full fine-tuning and a KL term the frozen reference.
- text encoders: on the GPU until all prompts are encoded, so they count at loading only. Of a local
  pipeline, they and the VAE count as large as their files.
- trajectories, float32: per image W + 1 latents and the finished one, W means for guard and dppo, W
  reference velocities with a KL term (W stochastic steps).
- activations of the backward: 34 bytes per token, channel and block in 16 bits (Korthikanti et al.,
  arXiv 2205.05198, attention scores not stored), 68 in float32. Checkpointing keeps 2 (4) bytes and
  one block's 34 (68).
- decoding: 1 KiB per pixel of a decode batch in the float32 VAE (96 images of 512x512 peak at 24 GB).
- several GPUs share the trajectories; sharded, also the transformer and its training state, but for two
  blocks that are gathered at a time. Hybrid sharding divides over the GPUs of a node, taken as eight.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from flow_trainer.models.architectures import Architecture
from flow_trainer.recipe import Model, Recipe

PATCH = 2
"""Latents per image token and side."""
CLIP_TOKENS = 77
"""Of SD3's CLIP encoders, before those of T5."""
ACTIVATION_BYTES = 17
"""Per token, channel and block, in units of the element size."""
DECODE_BYTES_PER_PIXEL = 1024
T5_PARAMETERS = 4.76e9
ENCODER_PARAMETERS = {"sd3": 5.58e9, "flux": 4.89e9, "qwen_image": 8.29e9}
VAE_PARAMETERS = {"sd3": 8.4e7, "flux": 8.4e7, "qwen_image": 1.27e8}
GPUS_PER_NODE = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU."""

    transformer: float
    training_state: float
    trajectories: float
    vae: float
    text_encoders: float
    activations: float
    decode: float

    @property
    def training_peak(self) -> float:
        resident = self.transformer + self.training_state + self.trajectories + self.vae
        return resident + max(self.activations, self.decode)

    @property
    def loading_peak(self) -> float:
        return self.transformer + self.vae + self.text_encoders

    @property
    def peak(self) -> float:
        return max(self.training_peak, self.loading_peak)


def memory(recipe: Recipe, model: Architecture, gpus: int = 1) -> Memory:
    """For each of `gpus` that train together."""
    m, u, s = recipe.model, recipe.update, recipe.sampling
    element = 4 if m.dtype == "float32" else 2
    lora = m.tuning == "lora"
    trained = model.lora_parameters if lora else model.parameters
    weights = model.parameters * element + trained * 4 if lora else model.parameters * 4
    if not lora and u.beta > 0:
        weights += model.parameters * element
    moments = 8 if u.optimizer == "adamw" else 2
    state = trained * (4 + moments + 4 * recipe.ema.enabled + 4 * u.forward_process)
    parts = {"none": 1, "full": gpus, "hybrid": min(gpus, GPUS_PER_NODE)}[recipe.sharding]
    gathered = 2 * weights / model.blocks if parts > 1 else 0
    images = math.ceil(recipe.images_per_epoch / gpus)
    return Memory(
        transformer=weights / parts + gathered,
        training_state=state / parts,
        trajectories=images * _latents_per_image(recipe) * _latent_bytes(recipe),
        vae=_file_bytes(m.path, "vae") or VAE_PARAMETERS[m.family] * 4,
        text_encoders=_file_bytes(m.path, "text_encoder*") or _encoder_parameters(m) * element,
        activations=_activations(recipe, model, element),
        decode=s.decode_batch * m.height * m.width * DECODE_BYTES_PER_PIXEL,
    )


def _file_bytes(path: str, components: str) -> int:
    """Size of a local pipeline's components; 0 for a hub repository."""
    return sum(file.stat().st_size for file in Path(path).glob(f"{components}/*.safetensors"))


def _encoder_parameters(m: Model) -> float:
    without_t5 = m.family == "sd3" and m.max_sequence_length == 0
    return ENCODER_PARAMETERS[m.family] - T5_PARAMETERS * without_t5


def _latents_per_image(recipe: Recipe) -> int:
    window = len(recipe.window(0))
    if window == 0:
        return 1
    extra = recipe.update.needs_old_means + (recipe.update.beta > 0)
    return 2 + window * (1 + extra)


def _latent_bytes(recipe: Recipe) -> float:
    factor, channels = _latent_layout(recipe.model.path)
    return recipe.model.height * recipe.model.width / factor**2 * channels * 4


def _latent_layout(path: str) -> tuple[int, int]:
    """Pixels per latent and side, and channels: as a local pipeline's VAE says in SD3's and FLUX's
    words, else those that all published families have."""
    file = Path(path) / "vae" / "config.json"
    vae = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "block_out_channels" not in vae:
        return 8, 16
    return 2 ** (len(vae["block_out_channels"]) - 1), vae["latent_channels"]


def _activations(recipe: Recipe, model: Architecture, element: int) -> float:
    m, s = recipe.model, recipe.sampling
    guided = 2 if m.guidance > 1 and m.family != "flux" else 1
    rows = s.micro_batch * recipe.update.steps_per_forward * guided
    side = _latent_layout(m.path)[0] * PATCH
    tokens = (m.height // side) * (m.width // side) + m.max_sequence_length
    if m.family == "sd3":
        tokens += CLIP_TOKENS
    block = rows * tokens * model.width * element * ACTIVATION_BYTES
    if m.gradient_checkpointing:
        return block + model.blocks * rows * tokens * model.width * element
    return block * model.blocks
