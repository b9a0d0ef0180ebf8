"""Encoded prompts in host memory: where they fit, every prompt is encoded once, whatever the number of
epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from flow_trainer.errors import NonFiniteError
from flow_trainer.models.conditioning import Conditioning, join

ENCODE_BATCH = 32
AHEAD_SHARE = 0.5
"""Of the cache, for prompts that are encoded before they are asked for."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a set of prompts fits into the cache."""

    prompts: int
    needed: float
    """Bytes of all of them; by the first ones where they do not fit."""
    limit: float
    """Bytes of the cache."""

    @property
    def fits(self) -> bool:
        return self.needed <= self.limit

    def explain(self) -> str:
        message = (
            f"{self.prompts:,} encoded prompts take about {self.needed / 1e9:.3g} GB of host memory, "
            f"model.prompt_cache_gb = {self.limit / 1e9:g}"
        )
        if self.fits:
            return message
        return message + ": they are encoded as they come, and the text encoders stay loaded"


class PromptCache:
    """`encode` turns a list of prompts into their Conditioning; at most `gigabytes` of it are kept.
    `visiting` is entered once around all that is encoded together."""

    def __init__(
        self,
        encode: Callable[[list[str]], Conditioning],
        gigabytes: float,
        visiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._encode = encode
        self._limit = gigabytes * 1e9
        self._visiting = visiting
        self._rows: dict[str, Conditioning] = {}
        """The latest used last."""
        self._bytes = 0

    def fill(self, prompts: Sequence[str]) -> Fit:
        """Encodes what is missing, when all of it fits: of a set that does not, only the first few, by
        which the set is measured."""
        wanted = list(dict.fromkeys(prompts))
        missing = self._missing(wanted)
        first, rest = missing[:ENCODE_BATCH], missing[ENCODE_BATCH:]
        with self._visiting() if missing else nullcontext():
            self._add(first)
            fit = self._fit(wanted)
            while rest and fit.fits:
                batch, rest = rest[:ENCODE_BATCH], rest[ENCODE_BATCH:]
                self._add(batch)
                fit = self._fit(wanted)
        self._evict()
        return fit

    def get(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> Conditioning:
        """On the CPU, one row per prompt, padded to the longest. When prompts have to be encoded, those
        that are needed next (`ahead`) are encoded with them, as far as there is room."""
        missing = self._missing(prompts)
        if missing:
            with self._visiting():
                self._add_all(missing, self._missing(ahead))
        for prompt in dict.fromkeys(prompts):  # the latest used
            self._rows[prompt] = self._rows.pop(prompt)
        found = join([self._rows[prompt] for prompt in prompts])
        self._evict()
        return found

    def _add_all(self, missing: list[str], ahead: list[str]) -> None:
        wanted = list(dict.fromkeys([*missing, *ahead]))
        begun = self._bytes
        for start in range(0, len(wanted), ENCODE_BATCH):
            if start >= len(missing) and self._bytes - begun > AHEAD_SHARE * self._limit:
                break
            self._add(wanted[start : start + ENCODE_BATCH])

    def _missing(self, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]

    def _fit(self, wanted: list[str]) -> Fit:
        known = [self._rows[prompt].nbytes() for prompt in wanted if prompt in self._rows]
        mean = sum(known) / max(len(known), 1)
        return Fit(len(wanted), mean * len(wanted), self._limit)

    def _evict(self) -> None:
        """Drops what was not used for longest, until the rest fits."""
        while self._bytes > self._limit:
            oldest = next(iter(self._rows))
            self._bytes -= self._rows.pop(oldest).nbytes()

    def _add(self, prompts: list[str]) -> None:
        if not prompts:
            return
        batch = self._encode(prompts).to(CPU)
        for index, prompt in enumerate(prompts):
            row = _unpadded(batch, index)
            if not row.tokens.isfinite().all():
                raise NonFiniteError(
                    f"the embedding of prompt {prompt!r} is not finite: a text encoder overflows in "
                    "model.dtype (use float32)"
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
