"""Encoded prompts: whether they fit is known before they are encoded, and only what is asked for is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from flow_trainer.errors import NonFiniteError
from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.prompt_cache import ENCODE_BATCH, PromptCache
from flow_trainer.models.prompt_rows import PromptRows

ROW = 4 * 8 * 4
"""Bytes of a prompt below."""
WORDS = [f"word {number}" for number in range(100)]


class Encoder:
    """A prompt's conditioning is its number."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.visits = 0

    def __call__(self, prompts: list[str]) -> Conditioning:
        self.batches.append(prompts)
        numbers = torch.tensor([float(prompt.split()[-1]) for prompt in prompts])
        return Conditioning(numbers.view(-1, 1, 1).expand(-1, 4, 8))

    @contextmanager
    def visiting(self) -> Iterator[None]:
        self.visits += 1
        yield

    @property
    def encoded(self) -> list[str]:
        return [prompt for batch in self.batches for prompt in batch]


def cache_of(rows: float) -> tuple[PromptCache, Encoder]:
    encoder = Encoder()
    return PromptCache(encoder, rows * ROW / 1e9, encoder.visiting), encoder


def numbers(conditioning: Conditioning) -> list[float]:
    return conditioning.tokens[:, 0, 0].tolist()


def test_a_set_that_fits_is_encoded_once() -> None:
    cache, encoder = cache_of(rows=100)
    fit = cache.fill([*WORDS, *WORDS[:7]])
    assert fit.fits
    assert (fit.prompts, fit.needed) == (100, 100 * ROW)
    assert encoder.encoded == WORDS
    assert encoder.visits == 1
    assert numbers(cache.get(["word 99", "word 0"])) == [99, 0]
    assert encoder.encoded == WORDS


def test_a_set_that_does_not_fit_is_not_encoded() -> None:
    cache, encoder = cache_of(rows=99)
    fit = cache.fill(WORDS)
    assert not fit.fits
    assert fit.needed == 100 * ROW
    assert len(encoder.encoded) == ENCODE_BATCH
    assert "100 encoded prompts take about" in fit.explain()
    assert "text encoders stay" in fit.explain()


def test_what_was_used_last_stays() -> None:
    cache, encoder = cache_of(rows=3)
    for prompt in WORDS[:3]:
        cache.get([prompt])
    cache.get(["word 0"])
    cache.get(["word 3"])  # in place of word 1
    encoder.batches.clear()
    assert numbers(cache.get(["word 0", "word 2", "word 3"])) == [0, 2, 3]
    assert not encoder.batches
    cache.get(["word 1"])
    assert encoder.encoded == ["word 1"]


def test_more_than_fits_can_be_asked_for_at_once() -> None:
    cache, _ = cache_of(rows=3)
    assert numbers(cache.get(WORDS)) == list(range(100))
    assert cache._bytes <= 3 * ROW


def test_what_comes_next_is_encoded_together_as_far_as_there_is_room() -> None:
    cache, encoder = cache_of(rows=2 * ENCODE_BATCH)
    assert numbers(cache.get(["word 5"], ahead=WORDS)) == [5]
    assert encoder.visits == 1
    assert ENCODE_BATCH < len(encoder.encoded) <= 2 * ENCODE_BATCH  # half of the room, and a batch
    assert encoder.encoded[:2] == ["word 5", "word 0"]
    cache.get(WORDS[:ENCODE_BATCH])
    assert encoder.visits == 1


def test_an_embedding_that_is_not_finite_is_named() -> None:
    cache, _ = cache_of(rows=10)
    with pytest.raises(NonFiniteError, match="'word nan'"):
        cache.get(["word nan"])


def test_rows_are_encoded_for_the_micro_batches_of_this_process_only() -> None:
    cache, encoder = cache_of(rows=100)
    policy: Any = type("P", (), {"encode": staticmethod(cache.get)})
    rows = PromptRows(policy, WORDS, order=[4, 4, 8, 8])
    first = rows[[4, 4, 8]]
    assert numbers(first) == [4, 4, 8]
    assert rows[[4, 4, 8]] is first  # of the next step of the same micro-batch
    assert numbers(rows[[8]]) == [8]
    assert encoder.encoded == ["word 4", "word 8"]
    assert len(encoder.batches) == 1
