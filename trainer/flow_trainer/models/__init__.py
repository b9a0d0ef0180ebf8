"""Model families. One file each: encode prompts, velocity, decode, LoRA targets. A family knows
nothing of GRPO; the algorithm knows nothing of a family beyond `Policy`.

To add one: write the file with its `FAMILY`, add its line to `FAMILIES`, its name and defaults to
`config.Model`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from flow_trainer.config import Model
from flow_trainer.throughput import Work

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

FAMILIES = {
    "sd3": "flow_trainer.models.sd3",
    "flux": "flow_trainer.models.flux",
    "qwen_image": "flow_trainer.models.qwen_image",
}


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text conditioning of B samples."""

    tokens: Tensor
    """(B, L, D)."""
    pooled: Tensor | None = None
    """(B, D')."""
    mask: Tensor | None = None
    """(B, L) bool, False on padding; None when all tokens count."""

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return self._each(lambda tensor: tensor[index])

    def repeat(self, times: int) -> Conditioning:
        """Row 0 `times` times, then row 1, ..."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, 0))

    def to(self, target: torch.device | torch.dtype) -> Conditioning:
        """On another device, or tokens and pooled in another dtype."""
        mask = self.mask
        if isinstance(target, torch.device) and mask is not None:
            mask = mask.to(target)
        pooled = None if self.pooled is None else self.pooled.to(target)
        return Conditioning(self.tokens.to(target), pooled, mask)

    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.tokens, self.pooled, self.mask) if t is not None)

    def _each(self, function) -> Conditioning:
        return Conditioning(
            function(self.tokens),
            None if self.pooled is None else function(self.pooled),
            None if self.mask is None else function(self.mask),
        )


def join(parts: Sequence[Conditioning]) -> Conditioning:
    """Rows of all parts; tokens are padded with zeros to the longest, and masked there."""
    length = max(part.tokens.shape[1] for part in parts)
    tokens = [
        nn.functional.pad(part.tokens, (0, 0, 0, length - part.tokens.shape[1])) for part in parts
    ]
    masks = None
    if any(part.mask is not None or part.tokens.shape[1] < length for part in parts):
        masks = torch.cat(
            [nn.functional.pad(_mask(part), (0, length - part.tokens.shape[1])) for part in parts]
        )
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat(tokens), torch.cat(pooled) if pooled else None, masks)


def _mask(part: Conditioning) -> Tensor:
    if part.mask is not None:
        return part.mask
    return torch.ones(part.tokens.shape[:2], dtype=torch.bool, device=part.tokens.device)


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

    def take_work(self) -> Work:
        """What `velocity` has cost since the last call, with the backward of every call that records
        gradients."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The float32 parameters that the optimizer sees, in a fixed order."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, `velocity` is the frozen model: without adapter, or before full fine-tuning."""
        ...

    def save(self, folder: Path | None) -> None:
        """Writes what diffusers loads: an adapter (`load_lora_weights`) or a transformer. Sharded
        parameters are gathered for it, so all ranks call; those that do not write pass None."""
        ...


def load_policy(
    config: Model, device: torch.device, *, with_reference: bool, mesh: DeviceMesh | None = None
) -> Policy:
    """Loads weights from the hub or a folder. `with_reference` keeps what `reference()` needs; the
    transformer is sharded over `mesh`."""
    from flow_trainer.models.policy import DiffusersPolicy

    family = importlib.import_module(FAMILIES[config.family]).FAMILY
    return DiffusersPolicy(family, config, device, with_reference=with_reference, mesh=mesh)
