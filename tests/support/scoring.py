"""A scorer without its service: what the chassis does with a batch, in one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from reward_api.errors import ItemFailure
from reward_api.wire.messages import ItemScore
from reward_services.chassis.scorer import Sample, Scorer


def score(scorer: Scorer, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[ItemScore]:
    """The scores of one batch; raises the first failure."""
    samples = [Sample(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    prepared = [replace(sample, prepared=scorer.prepare(sample)) for sample in samples]
    scores = []
    for outcome in scorer.score(prepared):
        if isinstance(outcome, ItemFailure):
            raise outcome
        scores.append(outcome)
    return scores


def values(scorer: Scorer, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
    """The main scores of one batch."""
    return [outcome.value for outcome in score(scorer, images, prompts)]
