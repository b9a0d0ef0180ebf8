"""Stable Diffusion 3 and 3.5 through diffusers' StableDiffusion3Pipeline."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from flow_trainer.config import Model
from flow_trainer.errors import ConfigError
from flow_trainer.models import Conditioning
from flow_trainer.schedule import static_shift_sigmas

# Attention projections of both streams (the published Flow-GRPO recipes for SD3.5-M).
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
]
ENCODE_BATCH = 32


def load(config: Model, device: torch.device, *, with_reference: bool) -> SD3Policy:
    pipeline = _load_pipeline(config, device)
    return SD3Policy(pipeline, config, device, with_reference=with_reference)


def _load_pipeline(config: Model, device: torch.device) -> StableDiffusion3Pipeline:
    options: dict[str, Any] = {"revision": config.revision, "dtype": _dtype(config, device)}
    if config.max_sequence_length == 0:
        # Checkpoints without T5 must be told so, or loading fails for the missing component.
        options |= {"text_encoder_3": None, "tokenizer_3": None}
    # our own progress is enough
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        return StableDiffusion3Pipeline.from_pretrained(config.path, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path = {config.path!r} does not load as a StableDiffusion3Pipeline: {error}\n"
            "A folder must hold model_index.json; a hub id may need `hf auth login` and its "
            "licence accepted; a checkpoint without T5 needs model.max_sequence_length = 0."
        ) from error


def _as_float32(module: Any) -> Any:
    """The module with float32 weights; untouched when it has them already, because diffusers warns
    of every cast."""
    return module if module.dtype == torch.float32 else module.to(torch.float32)


def _dtype(config: Model, device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else getattr(torch, config.dtype)


class SD3Policy:
    """See `flow_trainer.models.Policy`."""

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        config: Model,
        device: torch.device,
        *,
        with_reference: bool,
    ) -> None:
        self.device = device
        self._config = config
        self._dtype = _dtype(config, device)
        self._pipeline: Any = pipeline.to(device)
        # The VAE is float32: half precision visibly changes what the reward sees.
        self._vae: Any = _as_float32(pipeline.vae).requires_grad_(False).eval()
        self._transformer: Any = pipeline.transformer.requires_grad_(False).eval()
        self._reference: Any = None
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}
        factor = pipeline.vae_scale_factor
        if config.height % (2 * factor) or config.width % (2 * factor):
            raise ConfigError(
                f"model.height x model.width = {config.height}x{config.width} must be multiples of "
                f"{2 * factor} for this checkpoint (VAE factor {factor}, patch size 2)"
            )
        channels = self._transformer.config.in_channels
        self.latent_shape = (channels, config.height // factor, config.width // factor)
        self._prepare_tuning(with_reference)
        self._trainable = {
            name: parameter
            for name, parameter in self._transformer.named_parameters()
            if parameter.requires_grad
        }

    def _prepare_tuning(self, with_reference: bool) -> None:
        if self._config.gradient_checkpointing:
            self._transformer.enable_gradient_checkpointing()
        if self._config.tuning == "lora":
            self._transformer.add_adapter(
                LoraConfig(
                    r=self._config.lora_rank,
                    lora_alpha=self._config.lora_alpha,
                    init_lora_weights="gaussian",
                    target_modules=LORA_TARGETS,
                )
            )
            for parameter in self._transformer.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        else:
            if with_reference:
                self._reference = copy.deepcopy(self._transformer)
            _as_float32(self._transformer).requires_grad_(True)

    def sigmas(self, num_steps: int) -> Tensor:
        return static_shift_sigmas(num_steps, self._pipeline.scheduler.config.shift)

    def prepare_prompts(self, prompts: list[str]) -> bool:
        wanted = list(dict.fromkeys([*prompts, ""] if self._config.guidance > 1 else prompts))
        for start in range(0, len(wanted), ENCODE_BATCH):
            if self._is_cache_full():
                return False
            self._encode_missing(wanted[start : start + ENCODE_BATCH])
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            setattr(self._pipeline, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if missing and self._is_cache_full():
            self._cache.clear()
            missing = list(dict.fromkeys(prompts))
        for start in range(0, len(missing), ENCODE_BATCH):
            self._encode_missing(missing[start : start + ENCODE_BATCH])
        tokens, pooled = zip(*(self._cache[prompt] for prompt in prompts), strict=True)
        return Conditioning(
            torch.stack(tokens).to(self.device), torch.stack(pooled).to(self.device)
        )

    @torch.no_grad()
    def _encode_missing(self, prompts: list[str]) -> None:
        if self._pipeline.text_encoder is None:
            raise RuntimeError(f"text encoders are released and {prompts[0]!r} is not cached")
        tokens, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=prompts,
            prompt_2=prompts,
            prompt_3=prompts,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._config.max_sequence_length,
        )
        for prompt, row, pooled_row in zip(prompts, tokens.cpu(), pooled.cpu(), strict=True):
            # clone: a row is a view that would keep the whole batch alive
            self._cache[prompt] = (row.clone(), pooled_row.clone())

    def _is_cache_full(self) -> bool:
        if not self._cache:
            return False
        tokens, pooled = next(iter(self._cache.values()))
        bytes_each = tokens.nbytes + pooled.nbytes
        return len(self._cache) * bytes_each > self._config.prompt_cache_gb * 1e9

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        tokens, pooled = conditioning.tokens, conditioning.pooled
        guidance = self._config.guidance
        if guidance > 1:
            null = self.encode([""]).repeat(len(x))
            x, sigma = torch.cat([x, x]), torch.cat([sigma, sigma])
            tokens = torch.cat([null.tokens, tokens])
            pooled = torch.cat([null.pooled, pooled])
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            v = self._transformer(
                hidden_states=x.to(self._dtype),
                timestep=sigma.to(self.device) * 1000,
                encoder_hidden_states=tokens.to(self._dtype),
                pooled_projections=pooled.to(self._dtype),
                return_dict=False,
            )[0]
        v = v.float()
        if guidance > 1:
            v_null, v_prompt = v.chunk(2)
            v = v_null + guidance * (v_prompt - v_null)
        return v

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        config = self._vae.config
        z = x_0.float() / config.scaling_factor + (config.shift_factor or 0.0)
        pixels = self._vae.decode(z, return_dict=False)[0]
        pixels = (pixels * 127.5 + 127.5).round().clamp(0, 255)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()

    def trainable(self) -> dict[str, nn.Parameter]:
        return self._trainable

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._config.tuning == "lora":
            self._transformer.disable_adapters()
            try:
                yield
            finally:
                self._transformer.enable_adapters()
            return
        if self._reference is None:
            raise RuntimeError("load the policy with with_reference=True to use a KL term")
        trained, self._transformer = self._transformer, self._reference
        try:
            yield
        finally:
            self._transformer = trained

    def save(self, folder: Path) -> None:
        if self._config.tuning == "lora":
            config = next(iter(self._transformer.peft_config.values()))
            StableDiffusion3Pipeline.save_lora_weights(
                folder,
                transformer_lora_layers=dict(get_peft_model_state_dict(self._transformer)),
                # without it the loader assumes alpha = rank and scales the adapter wrongly
                transformer_lora_adapter_metadata=config.to_dict(),
            )
        else:
            self._transformer.save_pretrained(folder / "transformer")
