"""Model families. One file each: encode prompts, velocity, decode, LoRA targets. A family knows
nothing of GRPO; the algorithm knows nothing of a family beyond `Policy`.

To add one: write the file, add its line to `FAMILIES` and to `config.Model.family`.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from flow_trainer.config import Model

FAMILIES = {"sd3": "flow_trainer.models.sd3"}


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text conditioning of B samples: tokens (B, L, D) and pooled (B, D')."""

    tokens: Tensor
    pooled: Tensor

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return Conditioning(self.tokens[index], self.pooled[index])

    def repeat(self, times: int) -> Conditioning:
        """Row 0 `times` times, then row 1, ..."""
        return Conditioning(
            self.tokens.repeat_interleave(times, 0), self.pooled.repeat_interleave(times, 0)
        )


class Policy(Protocol):
    """A flow-matching model x_sigma = (1 - sigma) x_0 + sigma eps that predicts v = eps - x_0."""

    device: torch.device
    latent_shape: tuple[int, int, int]

    def sigmas(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) float32 on the CPU, from 1 down to 0."""
        ...

    def prepare_prompts(self, prompts: list[str]) -> bool:
        """Encodes prompts into host memory and frees the text encoders; False, and the encoders stay,
        when model.prompt_cache_gb is too small for them."""
        ...

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning on `device`, from the cache where possible."""
        ...

    def velocity(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """v (B, C, h, w) float32 at noise levels sigma (B,), guidance applied."""
        ...

    def decode(self, x_0: Tensor) -> Tensor:
        """Images (B, H, W, 3) uint8 on the CPU."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The float32 parameters that the optimizer sees, in a fixed order."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, `velocity` is the frozen model that training started from."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what diffusers loads: an adapter (`load_lora_weights`) or a transformer."""
        ...


def load_policy(config: Model, device: torch.device, *, with_reference: bool) -> Policy:
    """Loads weights from the hub or a folder. `with_reference` keeps what `reference()` needs."""
    module = importlib.import_module(FAMILIES[config.family])
    return module.load(config, device, with_reference=with_reference)
