"""A reward service whose model does nothing, or sleeps: what is left is the service itself."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from pydantic import Field

from reward_api.errors import ItemFailure
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.run import run


class NoopSettings(ScorerSettings):
    sleep_ms: float = Field(default=0.0, ge=0, description="time that a batch takes")


class NoopScorer(Scorer):
    """The score is the image's first byte, so that callers can check what arrived."""

    Settings = NoopSettings

    def load(self, device: str) -> None:
        self._sleep_s = self.settings.sleep_ms / 1000

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="the first byte", score=ScoreRange(name="noop", minimum=0.0, maximum=255.0)
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        if self._sleep_s:
            time.sleep(self._sleep_s)
        return [ItemScore(value=float(sample.image[0, 0, 0])) for sample in batch]


if __name__ == "__main__":
    sys.exit(run("noop", NoopScorer, sys.argv[1:], os.environ))
