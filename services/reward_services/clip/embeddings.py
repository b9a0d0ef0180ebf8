"""Image embeddings in the details of scores: they are there anyway, and a trainer that watches for images
growing alike asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward_api.wire.embeddings import KEY, pack_embedding
from reward_api.wire.messages import ItemScore
from reward_services.chassis.scorer import Sample


def with_embeddings(
    scores: Sequence[ItemScore], features: np.ndarray, batch: Sequence[Sample]
) -> list[ItemScore]:
    """`features`: (N, D) of unit length. Only samples that ask for details get theirs."""
    return [
        score.model_copy(update={"details": {KEY: pack_embedding(row)}})
        if sample.include_details
        else score
        for score, row, sample in zip(scores, features, batch, strict=True)
    ]
