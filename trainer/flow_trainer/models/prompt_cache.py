"""Encoded prompts in host memory: every prompt is encoded once, whatever the number of epochs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flow_trainer.errors import NonFiniteError
from flow_trainer.models.conditioning import Conditioning, join

ENCODE_BATCH = 32
CPU = torch.device("cpu")


class PromptCache:
    """`encode` turns a list of prompts into their Conditioning; at most `gigabytes` of it are kept."""

    def __init__(self, encode: Callable[[list[str]], Conditioning], gigabytes: float) -> None:
        self._encode = encode
        self._limit = gigabytes * 1e9
        self._rows: dict[str, Conditioning] = {}
        self._bytes = 0

    def fill(self, prompts: list[str]) -> bool:
        """Encodes what is missing; False when it does not fit."""
        wanted = list(dict.fromkeys(prompts))
        for start in range(0, len(wanted), ENCODE_BATCH):
            if self._bytes > self._limit:
                return False
            self._add(wanted[start : start + ENCODE_BATCH])
        return True

    def get(self, prompts: list[str]) -> Conditioning:
        """On the CPU, one row per prompt, padded to the longest."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if missing and self._bytes > self._limit:
            self._rows.clear()
            self._bytes = 0
            missing = list(dict.fromkeys(prompts))
        for start in range(0, len(missing), ENCODE_BATCH):
            self._add(missing[start : start + ENCODE_BATCH])
        return join([self._rows[prompt] for prompt in prompts])

    def _add(self, prompts: list[str]) -> None:
        batch = self._encode(prompts).to(CPU)
        for index, prompt in enumerate(prompts):
            row = _unpadded(batch, index)
            if not row.tokens.isfinite().all():
                raise NonFiniteError(
                    f"the embedding of prompt {prompt!r} is not finite: a text encoder overflows in "
                    "model.dtype (use bfloat16)"
                )
            self._rows[prompt] = row
            self._bytes += row.nbytes()


def _unpadded(batch: Conditioning, index: int) -> Conditioning:
    """One row without its padding; cloned, because a view would keep the whole batch alive."""
    row = slice(index, index + 1)
    length = batch.tokens.shape[1] if batch.mask is None else int(batch.mask[index].sum())
    return Conditioning(
        batch.tokens[row, :length].clone(),
        None if batch.pooled is None else batch.pooled[row].clone(),
    )
