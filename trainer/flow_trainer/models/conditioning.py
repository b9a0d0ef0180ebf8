"""What a prompt is to the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Rows(Protocol):
    """Conditioning of many prompts, by number."""

    def __getitem__(self, prompts: list[int], /) -> Conditioning: ...


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Text conditioning of B samples."""

    tokens: Tensor
    """(B, L, D)."""
    pooled: Tensor | None = None
    """(B, D')."""
    mask: Tensor | None = None
    """(B, L) bool, False on padding; None when all tokens count."""

    def __getitem__(self, index: slice | list[int]) -> Conditioning:
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
