"""A real reward service for training tests: the mean brightness of an image, no weights.

BRIGHTNESS_FAIL_FILE names a file; while it exists, every item fails with MODEL_ERROR.
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


class Brightness(Scorer):
    def load(self, device: str) -> None:
        self._fail_file = os.environ.get("BRIGHTNESS_FAIL_FILE", "")

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="mean pixel value",
            score=ScoreRange(name="brightness", minimum=0.0, maximum=1.0),
            revision="1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        if self._fail_file and os.path.exists(self._fail_file):
            return [ItemFailure(Reason.MODEL_ERROR, "told to fail") for _ in batch]
        return [ItemScore(value=float(sample.image.mean() / 255)) for sample in batch]

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        return [
            outcome.model_copy(
                update={"gradient": pack_gradient(np.full(s.image.shape, 1 / s.image.size))}
            )
            if isinstance(outcome, ItemScore)
            else outcome
            for outcome, s in zip(self.score(batch), batch, strict=True)
        ]


if __name__ == "__main__":
    sys.exit(run("brightness", Brightness, sys.argv[1:], os.environ))
