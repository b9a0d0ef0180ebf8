"""GPU memory that a recipe takes, from its numbers alone.

Arithmetic, held to a tenth of what fake runs of the real models found (docs/memory.md); what neither
sees, CUDA's context, workspaces and fragmentation, is the tenth that sized recipes leave free.

- transformer: 2 bytes per frozen parameter, a teacher's adapter too (4 in float32); 4 per trained one.
- training state per trained parameter, float32: gradient 4, AdamW's two moments 8 (2 in 8 bits), EMA
  4, the old policy of nft and awm 4; with full fine-tuning and a KL term the frozen reference.
- text encoders: on the GPU while prompts are encoded, and for good where the encoded prompts exceed
  model.prompt_cache_gb; offloaded ones only visit. Of a local pipeline, they and the VAE count as large
  as their files.
- trajectories, float32: per image W + 1 latents and the finished one, W means for guard and dppo, W
  reference velocities with a KL term (W stochastic steps).
- activations of the backward: so many elements per token, channel and block as ACTIVATIONS says; with
  checkpointing 1 and one block's. Attention scores are not stored (flash attention).
- decoding: 3 KiB per pixel of a decode batch in the float32 VAE; taken back, under refl, 23 KB, with
  checkpointing 12.6 KB, beside which the transformer keeps nothing.
- an optimizer step: a float32 copy of what it trains.
- several GPUs share the trajectories; sharded, also the transformer and its training state, but for two
  blocks that are gathered at a time in 16 bits, and the gradients that are not yet added over the ranks,
  of a block or of an adapter. Hybrid sharding divides over the GPUs of a node, taken as eight.
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
ACTIVATIONS = {
    "sd3": 20.4,
    "flux": 18.3,
    "qwen_image": 24.7,
    "z_image": 33.4,
    "flux2_klein": 24.2,
}
"""Elements per token, channel and block that an update keeps for its backward. That of Qwen-Image, of
which there is no fake run, is taken from SD3.5-M."""
SECOND_ATTENTION = 8.0
"""More, of a block that has one."""
FULL = 1.74
"""Times that with full fine-tuning: from a fake run of SD3.5-M, in no recipe and held by no test."""
RECOMPUTED = {
    "sd3": 28.7,
    "flux": 34.0,
    "qwen_image": 34.0,
    "z_image": 41.4,
    "flux2_klein": 42.3,
}
"""The same of the one block that checkpointing has at a time, with what surrounds it. That of Qwen-Image is
FLUX's. With full fine-tuning SD3.5-M has 47.6: 1.2 GB for the batches of `sd35m_ocr`, left out."""
DECODE_BYTES_PER_PIXEL = 3100
PULL_BACK_BYTES_PER_PIXEL = 23_300
PULL_BACK_CHECKPOINTED = 12_600
PROMPTS = 20_000
"""In a prompt file that is not there yet: about the size of the published sets."""
T5_PARAMETERS = 4.76e9
ENCODER_PARAMETERS = {"sd3": 5.58e9, "flux": 4.89e9, "qwen_image": 8.29e9, "z_image": 4.02e9}
KLEIN_ENCODERS = {7680: 4.02e9, 12288: 8.19e9}
"""FLUX.2-klein's two, by the channels of a text token: Qwen3-4B and Qwen3-8B."""
VAE_PARAMETERS = {
    "sd3": 8.4e7,
    "flux": 8.4e7,
    "qwen_image": 1.27e8,
    "z_image": 8.4e7,
    "flux2_klein": 8.4e7,
}
T5_KEPT_FLOAT32 = 1.007e9
"""Parameters of T5 that transformers leaves in float32 under float16."""
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
    step: float
    """Of the optimizer."""
    encoders_stay: bool
    """Text encoders are on the GPU while it trains."""

    @property
    def training_peak(self) -> float:
        resident = self.transformer + self.training_state + self.trajectories + self.vae
        if self.encoders_stay:
            resident += self.text_encoders
        return resident + max(self.activations, self.decode, self.step)

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
    whole = model.parameters + model.buffers
    weights = whole * element + trained * 4 if lora else whole * 4
    weights += len(recipe.teachers) * model.lora_parameters * element
    if not lora and recipe.needs_reference:
        weights += whole * element
    moments = 8 if u.optimizer == "adamw" else 2
    state = trained * (4 + moments + 4 * recipe.ema.enabled + 4 * u.forward_process)
    parts = {"none": 1, "full": gpus, "hybrid": min(gpus, GPUS_PER_NODE)}[recipe.sharding]
    gathered = _gathered(model, element, lora=lora) if parts > 1 else 0
    images = math.ceil(recipe.images_per_epoch / gpus)
    return Memory(
        transformer=weights / parts + gathered,
        training_state=state / parts,
        trajectories=images * _latents_per_image(recipe) * _latent_bytes(recipe),
        vae=_file_bytes(m.path, "vae") or VAE_PARAMETERS[m.family] * 4,
        text_encoders=_file_bytes(m.path, "text_encoder*") or _encoder_bytes(m, model, element),
        activations=_activations(recipe, model, element, sharded=parts > 1),
        decode=min(s.decode_batch, s.micro_batch) * m.height * m.width * DECODE_BYTES_PER_PIXEL,
        step=trained * 4 / parts if u.optimizer == "adamw" else 0,
        encoders_stay=_encoders_stay(recipe, model, element),
    )


def _gathered(model: Architecture, element: int, *, lora: bool) -> float:
    """What a rank holds whole of a model that is divided."""
    block = (model.parameters + model.buffers) / model.blocks
    trained = model.lora_parameters if lora else block
    return 2 * block * element + trained * (4 + element)


def _file_bytes(path: str, components: str) -> int:
    """Size of a local pipeline's components; 0 for a hub repository."""
    return sum(file.stat().st_size for file in Path(path).glob(f"{components}/*.safetensors"))


def _encoder_bytes(m: Model, model: Architecture, element: int) -> float:
    if m.family == "flux2_klein":
        return KLEIN_ENCODERS.get(model.text_width, max(KLEIN_ENCODERS.values())) * element
    without_t5 = m.family == "sd3" and m.max_sequence_length == 0
    parameters = ENCODER_PARAMETERS[m.family] - T5_PARAMETERS * without_t5
    has_t5 = m.family in ("sd3", "flux") and not without_t5
    return parameters * element + 2 * T5_KEPT_FLOAT32 * (has_t5 and m.dtype == "float16")


def _encoders_stay(recipe: Recipe, model: Architecture, element: int) -> bool:
    """Whether the recipe's prompts, once encoded, exceed model.prompt_cache_gb."""
    m = recipe.model
    if m.offload:
        return False
    rows = sum(_prompt_count(path) for *_, path in recipe.prompts.files())
    return rows * text_tokens(m) * model.text_width * element > m.prompt_cache_gb * 1e9


def _prompt_count(path: str) -> int:
    file = Path(path)
    if not file.is_file():
        return PROMPTS
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def _latents_per_image(recipe: Recipe) -> int:
    if recipe.update.trains_on == "data":
        return 0
    window = len(recipe.window(0))
    if window == 0:
        return 1
    if recipe.update.trains_on == "gradients":
        return 2
    extra = recipe.update.needs_old_means + (recipe.update.beta > 0)
    return 2 + window * (1 + extra)


def _latent_bytes(recipe: Recipe) -> float:
    factor, channels = _latent_layout(recipe.model)
    return recipe.model.height * recipe.model.width / factor**2 * channels * 4


def _latent_layout(m: Model) -> tuple[int, int]:
    """Pixels per latent and side, and channels: as a local pipeline's VAE says in SD3's and FLUX's
    words, else those that the published checkpoints have."""
    file = Path(m.path) / "vae" / "config.json"
    vae = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "block_out_channels" not in vae:
        return 8, 32 if m.family == "flux2_klein" else 16
    return 2 ** (len(vae["block_out_channels"]) - 1), vae["latent_channels"]


def text_tokens(m: Model) -> int:
    """Text tokens of a prompt in the transformer."""
    return m.max_sequence_length + CLIP_TOKENS * (m.family == "sd3")


def trained_rows(recipe: Recipe) -> int:
    """Samples of a micro-batch that an update takes through the transformer: those that groups choose."""
    s = recipe.sampling
    if recipe.update.trains_on == "data":
        return 0
    chosen = math.ceil(s.micro_batch / s.group_size) * recipe.update.chosen(s.group_size)
    return min(s.micro_batch, chosen)


def _data_rows(recipe: Recipe) -> int:
    """Rows of the transformer that a micro-batch of [data] is."""
    d, size = recipe.data, recipe.sampling.micro_batch
    if d is None:
        return 0
    return max(1, size // d.members) * d.members * _guided(recipe.model, d.guidance)


def _guided(m: Model, guidance: float) -> int:
    return 2 if guidance > 1 and m.family != "flux" else 1


def _activations(
    recipe: Recipe, model: Architecture, element: int, *, sharded: bool = False
) -> float:
    m, s = recipe.model, recipe.sampling
    through_pixels = recipe.update.trains_on == "gradients"
    together = s.window.size if through_pixels else recipe.update.steps_per_forward
    rows = max(trained_rows(recipe) * together * _guided(m, m.guidance), _data_rows(recipe))
    side = _latent_layout(m)[0] * PATCH
    tokens = (m.height // side) * (m.width // side) + text_tokens(m)
    per_element = rows * tokens * model.width * element
    # linear layers that train keep more inputs for the backward, and their weights' 16-bit copies,
    # unless those were gathered in 16 bits and are again
    full = m.tuning == "full"
    copies = model.parameters * element if full and element == 2 and not sharded else 0
    if m.gradient_checkpointing:
        found = per_element * (model.blocks + RECOMPUTED[m.family]) + copies / model.blocks
    else:
        kept = ACTIVATIONS[m.family] + SECOND_ATTENTION * model.second_attentions / model.blocks
        kept *= FULL if full else 1
        found = per_element * model.blocks * kept + copies
    if not through_pixels:
        return found
    per_pixel = PULL_BACK_CHECKPOINTED if m.gradient_checkpointing else PULL_BACK_BYTES_PER_PIXEL
    batch = min(recipe.update.gradient_batch, s.micro_batch)
    return max(found, batch * m.height * m.width * per_pixel)
