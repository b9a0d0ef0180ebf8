"""A real reward service with a gradient that differs in every number: no weights, float64.

The score of pixels p in 0..1 is k mean(w p^2), w of either sign by place and channel, k by the prompt's
length. SMOOTH_FAIL_PROMPT names a prompt whose items fail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import numpy as np

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.gradients import pack_gradient
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo
from reward_services.run import run


def weights(height: int, width: int) -> np.ndarray:
    """w (H, W, 3)."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return np.cos(1.3 * y + 0.7 * x + 2.1 * c) + 0.2


def factor(prompt: str) -> float:
    return 1.0 + len(prompt) % 3


class Smooth(Scorer):
    def load(self, device: str) -> None:
        self._failing = os.environ.get("SMOOTH_FAIL_PROMPT", "")

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="a weighted mean of squares",
            score=ScoreRange(name="smooth"),
            revision="1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        return [self._outcome(sample, gradient=False) for sample in batch]

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        return [self._outcome(sample, gradient=True) for sample in batch]

    def _outcome(self, sample: Sample, *, gradient: bool) -> ItemScore | ItemFailure:
        if sample.prompt == self._failing:
            return ItemFailure(Reason.MODEL_ERROR, "told to fail")
        pixels = np.asarray(sample.image, float) / 255
        slope = factor(sample.prompt) * weights(*pixels.shape[:2]) / pixels.size
        score = ItemScore(value=float((slope * pixels**2).sum()))
        if not gradient:
            return score
        return score.model_copy(update={"gradient": pack_gradient(2 * slope * pixels)})


if __name__ == "__main__":
    sys.exit(run("smooth", Smooth, sys.argv[1:], os.environ))
