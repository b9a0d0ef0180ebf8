"""What every family shares: loading a diffusers pipeline, encoded prompts, precision, tuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from flow_trainer.errors import ConfigError
from flow_trainer.models.conditioning import Conditioning, join
from flow_trainer.models.decoding import Decoded, Decoder, channels_last
from flow_trainer.models.families.family import Family
from flow_trainer.models.families.scheduler import check_scheduler
from flow_trainer.models.flops import FlopsByText, forward_flops
from flow_trainer.models.kernels import compiles
from flow_trainer.models.pieces import Pieces, empty_transformer
from flow_trainer.models.policy import Work
from flow_trainer.models.prompt_cache import Fit, PromptCache
from flow_trainer.models.tuning import Tuning, as_float32
from flow_trainer.recipe import Model


class DiffusersPolicy:
    """See `flow_trainer.models.policy.Policy`."""

    def __init__(
        self,
        family: Family,
        config: Model,
        device: torch.device,
        *,
        with_reference: bool,
        mesh: DeviceMesh | None = None,
        pipeline: Any = None,
        teachers: Mapping[str, str] | None = None,
    ) -> None:
        """`pipeline`: an instance of the family's, instead of the one at config.path. `teachers`:
        adapters by name."""
        self.device = device
        self._family = family
        compiled = compiles(config, device)
        self.compiled_by_choice = config.compile == "auto" and compiled
        if not compiled:
            config = config.model_copy(update={"compile": False})
        self._config = config
        self.dtype = _dtype(config, device)
        pieces = None
        if pipeline is None:
            pipeline, pieces = _load_pipeline(family, config, self.dtype, mesh is not None)
        check_scheduler(pipeline.scheduler)
        family.check(pipeline, config)
        self._pipeline: Any = pipeline
        transformer, pipeline.transformer = pipeline.transformer, None
        if not config.offload and device.type != "cpu":
            pipeline.to(device)
        if mesh is None:  # else it goes to the devices in parts, and need not fit on one
            transformer.to(device)
        pipeline.transformer = transformer
        # The VAE is float32: half precision visibly changes what the reward sees.
        self._vae: Any = as_float32(self._pipeline.vae).requires_grad_(False).eval()
        if device.type == "cuda":
            channels_last(self._vae)
        # acts where a decode is taken back; Qwen-Image's VAE cannot
        if config.gradient_checkpointing and self._vae._supports_gradient_checkpointing:
            self._vae.enable_gradient_checkpointing()
        factor = self._pipeline.vae_scale_factor
        if config.height % (2 * factor) or config.width % (2 * factor):
            raise ConfigError(
                f"model.height x model.width = {config.height}x{config.width} must be multiples of "
                f"{2 * factor} for this checkpoint (VAE factor {factor}, patch size 2)"
            )
        _check_positions(transformer.config, config, factor)
        channels = family.latent_channels(transformer.config)
        self.latent_shape = (channels, config.height // factor, config.width // factor)
        count = partial(forward_flops, type(transformer), transformer.config, family)
        self._flops = FlopsByText(partial(count, config, self.latent_shape), family.text_multiple)
        self._rows: Counter[tuple[int, bool]] = Counter()
        self._tuning = Tuning(
            transformer,
            config,
            family.lora_targets,
            with_reference=with_reference,
            mesh=mesh,
            dtype=self.dtype,
            pieces=pieces,
            teachers=teachers or {},
        )
        self._prompts = PromptCache(self._encode, config.prompt_cache_gb, self._with_encoders)
        self._decoder = Decoder(self._pixels, device, lambda: self._on_device(self._vae))
        self._empty: Conditioning | None = None

    def sigmas(self, num_steps: int) -> Tensor:
        _, height, width = self.latent_shape
        return self._family.sigmas(
            self._pipeline.scheduler.config, num_steps, (height // 2) * (width // 2)
        )

    def prepare_prompts(self, prompts: list[str]) -> Fit:
        # the empty prompt also where only a reference is guided
        fit = self._prompts.fill([*prompts, ""] if self._family.classifier_free else prompts)
        if not fit.fits:
            return fit
        for name in self._family.text_encoders:
            setattr(self._pipeline, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return fit

    def encode(self, prompts: list[str], ahead: Sequence[str] = ()) -> Conditioning:
        return self._prompts.get(prompts, ahead).to(self.device)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Conditioning:
        if getattr(self._pipeline, self._family.text_encoders[0]) is None:
            raise RuntimeError(f"text encoders are released and {prompts[0]!r} is not cached")
        return self._family.encode(self._pipeline, self._config, prompts, self.device)

    def _with_encoders(self) -> AbstractContextManager[None]:
        return self._on_device(*(getattr(self._pipeline, n) for n in self._family.text_encoders))

    @contextmanager
    def _on_device(self, *modules: nn.Module | None) -> Iterator[None]:
        """Inside, offloaded modules visit the policy's device. Their tensors in host memory stay there
        meanwhile, so that nothing is copied back."""
        visitors = [m for m in modules if m is not None] if self._config.offload else []
        at_home = [(t, t.data) for m in visitors for t in chain(m.parameters(), m.buffers())]
        for tensor, data in at_home:
            tensor.data = data.to(self.device)
        try:
            yield
        finally:
            for tensor, data in at_home:
                tensor.data = data

    @property
    def _has_null(self) -> bool:
        return self._family.classifier_free and self._config.guidance > 1

    def _null(self, rows: int) -> Conditioning | None:
        """The empty prompt, as the transformer takes it; kept on the device."""
        if not self._has_null:
            return None
        if self._empty is None:
            self._empty = self.encode([""]).to(self.dtype)
        return self._empty.repeat(rows)

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        null = self._null(len(x))
        text_tokens = conditioning.tokens.shape[1]
        x, sigma, conditioning = (
            x.to(self.dtype),
            sigma.to(self.device),
            conditioning.to(self.dtype),
        )
        if null is not None:
            x, sigma = torch.cat([x, x]), torch.cat([sigma, sigma])
            conditioning = join([null, conditioning])
        self._rows[text_tokens, torch.is_grad_enabled()] += len(x)
        with torch.autocast(
            self.device.type,
            self.dtype,
            enabled=self.dtype != torch.float32,
            # it would keep a second copy of all weights for as long as the forward lasts
            cache_enabled=self._config.tuning == "lora",
        ):
            v = self._family.velocity(
                self._tuning.transformer, self._config, x, sigma, conditioning
            )
        if null is None:
            return v
        v_null, v_prompt = v.chunk(2)
        return self._family.guide(v_null, v_prompt, self._config.guidance)

    def take_work(self) -> Work:
        _, height, width = self.latent_shape
        backward = 1 if self._config.tuning == "lora" else 2
        flops = 0.0
        for (text_tokens, trained), rows in self._rows.items():
            flops += self._flops(text_tokens) * rows * (1 + backward * trained)
        tokens = sum(self._rows.values()) * (height // 2) * (width // 2)
        self._rows.clear()
        return Work(tokens, flops)

    def decode(self, x_0: Tensor, batch: int) -> Decoded:
        return self._decoder.start(x_0, batch)

    def pull_back(self, x_0: Tensor, gradient: Tensor, batch: int) -> Tensor:
        return self._decoder.pull_back(x_0, gradient, batch)

    def _pixels(self, x_0: Tensor) -> Tensor:
        z = self._family.unscale(self._vae, x_0.float())
        pixels = self._vae.decode(z, return_dict=False)[0]
        return pixels[:, :, 0] if pixels.ndim == 5 else pixels  # a video VAE: one frame

    @torch.no_grad()
    def to_latents(self, images: Tensor, batch: int) -> Tensor:
        # the way back from what `unscale` does to every element: times a, plus b
        zeros = torch.zeros(1, *self.latent_shape, device=self.device)
        b = self._family.unscale(self._vae, zeros)
        a = self._family.unscale(self._vae, zeros + 1) - b
        found = []
        with self._on_device(self._vae):
            for chunk in images.split(batch):
                x = chunk.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
                z = self._vae.encode(x if b.ndim == 4 else x[:, :, None]).latent_dist.mode()
                x_0 = (z - b) / a
                found.append(x_0 if x_0.ndim == 4 else x_0[:, :, 0])
        return torch.cat(found)

    def trainable(self) -> dict[str, nn.Parameter]:
        return self._tuning.trainable

    def before_backward(self, *, last: bool) -> None:
        self._tuning.before_backward(last=last)

    @contextmanager
    def reference(self, guidance: float | None = None) -> Iterator[None]:
        with self._tuning.reference(), self._guided(guidance):
            yield

    @contextmanager
    def teacher(self, name: str, guidance: float | None = None) -> Iterator[None]:
        with self._tuning.teacher(name), self._guided(guidance):
            yield

    def guided(self, guidance: float) -> AbstractContextManager[None]:
        return self._guided(guidance)

    @contextmanager
    def _guided(self, scale: float | None) -> Iterator[None]:
        """Inside, guidance has this scale; None: the recipe's."""
        config = self._config
        if scale is not None:
            self._config = config.model_copy(update={"guidance": scale})
        try:
            yield
        finally:
            self._config = config

    def run_eagerly(self) -> None:
        self._tuning.run_eagerly()
        self.compiled_by_choice = False

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        before, self.dtype = self.dtype, torch.float32
        self._empty = None
        try:
            with self._tuning.in_float32():
                yield
        finally:
            self.dtype = before
            self._empty = None

    def save(self, folder: Path | None) -> None:
        self._tuning.save(folder, self._family.pipeline_class)


def _load_pipeline(
    family: Family, config: Model, dtype: torch.dtype, divided: bool
) -> tuple[Any, Pieces | None]:
    """The pipeline, and where its transformer's weights are, when that is to be divided and has none."""
    # our own progress is enough
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    name = family.pipeline_class.__name__
    try:
        found = family.pipeline_class.load_config(config.path, revision=config.revision)
        if found.get("_class_name", name) != name:
            raise ConfigError(
                f"model.path = {config.path!r} holds a {found['_class_name']}, not the {name} of "
                f"model.family = {config.family}: correct one of the two"
            )
        options, pieces = family.load_options(config), None
        if divided and (empty := empty_transformer(config, found, dtype)) is not None:
            options["transformer"], pieces = empty
        # the VAE computes in float32, and its weights have not been through fewer bits before
        dtypes = {"default": dtype, "vae": torch.float32}
        pipeline = family.pipeline_class.from_pretrained(
            config.path, revision=config.revision, dtype=dtypes, **options
        )
        return pipeline, pieces
    except ConfigError:
        raise
    # what diffusers and its loaders raise on files that they cannot use
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"model.path = {config.path!r} does not load as a {name}: {error}\n"
            "A folder must hold model_index.json; a hub id may need `hf auth login` and its "
            "licence accepted; an SD3 checkpoint without T5 needs model.max_sequence_length = 0."
        ) from error


def _check_positions(transformer: Any, config: Model, factor: int) -> None:
    """SD3's table of positions is finite; the other families compute theirs for any size."""
    most = transformer.get("pos_embed_max_size")
    if most is not None and max(config.height, config.width) > most * 2 * factor:
        raise ConfigError(
            f"model.height x model.width = {config.height}x{config.width}: this checkpoint has "
            f"positions for at most {most * 2 * factor} pixels a side"
        )


def _dtype(config: Model, device: torch.device) -> torch.dtype:
    if device.type == "cpu" and not config.autocast_on_cpu:
        return torch.float32
    return getattr(torch, config.dtype)
