"""The seam between the algorithm and a model: the algorithm knows nothing of a family beyond `Policy`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.decoding import Decoded
from flow_trainer.models.prompt_cache import Fit


@dataclass(frozen=True, slots=True)
class Work:
    """What a transformer has computed."""

    tokens: int
    """Image tokens through it; classifier-free guidance takes every image through it twice."""
    flops: float
    """Of the model, backward included: what activation checkpointing repeats does not count, nor do
    the adapter's own products, about a hundredth."""


class Policy(Protocol):
    """A flow-matching model x_sigma = (1 - sigma) x_0 + sigma eps that predicts v = eps - x_0."""

    device: torch.device
    dtype: torch.dtype
    """In which the transformer computes; weights that train are float32 and `velocity` gives float32."""
    latent_shape: tuple[int, int, int]
    compiled_by_choice: bool
    """Blocks are compiled because model.compile = auto found that they can be."""

    def sigmas(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) float32 on the CPU, from 1 down to 0."""
        ...

    def prepare_prompts(self, prompts: list[str]) -> Fit:
        """Encodes prompts into host memory and frees the text encoders. When model.prompt_cache_gb is
        too small for all of them, the encoders stay, and little more than nothing is encoded."""
        ...

    def encode(self, prompts: list[str], ahead: Sequence[str] = ()) -> Conditioning:
        """Conditioning on `device`, from the cache where possible. `ahead`: prompts that are asked for
        next; they may be encoded with these."""
        ...

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """v (B, C, h, w) float32 at noise levels sigma (B,), guidance applied."""
        ...

    def decode(self, x_0: Tensor, batch: int) -> Decoded:
        """Begins to decode images, `batch` at a time."""
        ...

    def pull_back(self, x_0: Tensor, gradient: Tensor, batch: int) -> Tensor:
        """(B, C, h, w) float32: the gradient with respect to latents x_0 of what has the constant
        gradient (B, H, W, 3) with respect to the pixels, in 0..1, that `decode` makes of them; `batch`
        images at a time."""
        ...

    def to_latents(self, images: Tensor, batch: int) -> Tensor:
        """The latents (B, C, h, w) float32, on `device`, of images (B, H, W, 3) uint8: the mean that the
        VAE gives, `batch` images at a time."""
        ...

    def guided(self, guidance: float) -> AbstractContextManager[None]:
        """Inside, `velocity` has this scale of guidance instead of the recipe's."""
        ...

    def take_work(self) -> Work:
        """What `velocity` has cost since the last call, with the backward of every call that records
        gradients."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The float32 parameters that the optimizer sees, in a fixed order."""
        ...

    def before_backward(self, *, last: bool) -> None:
        """Call before every backward; `last`: the one after which the optimizer steps. Sharded
        parameters put off until then what the ranks need not exchange earlier."""
        ...

    def reference(self, guidance: float | None = None) -> AbstractContextManager[None]:
        """Inside, `velocity` is the frozen model: without adapter, or before full fine-tuning; at
        this scale of guidance instead of the recipe's."""
        ...

    def teacher(self, name: str, guidance: float | None = None) -> AbstractContextManager[None]:
        """Inside, `velocity` is that of this teacher, without gradients, at this scale of guidance
        instead of the recipe's."""
        ...

    def run_eagerly(self) -> None:
        """From now on, blocks are not compiled."""
        ...

    def in_float32(self) -> AbstractContextManager[None]:
        """Inside, the transformer computes in float32, from the same weights. The frozen ones take
        twice the memory there."""
        ...

    def save(self, folder: Path | None) -> None:
        """Writes what diffusers loads: an adapter (`load_lora_weights`) or a transformer. Sharded
        parameters are gathered for it, so all ranks call; those that do not write pass None."""
        ...
