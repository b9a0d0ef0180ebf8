"""A real service that marks images under any reward's name, by plain arithmetic and no weights.

    python tests/support/rewards/marks.py NAME SCORE[,SUB...]

SCORE is the main score's name: mean pixel / 255; each SUB is 1 where that is above one half, else 0.
A prompt that begins with "broken" has no score. MARKS_LOG names a file that gets a line per image.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo
from reward_services.run import run

NAME, SCORES = sys.argv[1], sys.argv[2].split(",")


class Marks(Scorer):
    def load(self, device: str) -> None:
        self._log = os.environ.get("MARKS_LOG", "")
        self._pause_s = float(os.environ.get("MARKS_PAUSE_S", "0"))

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="mean pixel value",
            score=ScoreRange(name=SCORES[0], minimum=0.0, maximum=1.0),
            sub_scores=[ScoreRange(name=name) for name in SCORES],
            revision="1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        time.sleep(self._pause_s * len(batch))
        if self._log:
            with Path(self._log).open("a") as file:
                file.writelines(f"{sample.prompt}\n" for sample in batch)
        return [self._mark(sample) for sample in batch]

    def _mark(self, sample: Sample) -> ItemScore | ItemFailure:
        if sample.prompt.startswith("broken"):
            return ItemFailure(Reason.MODEL_ERROR, "broken")
        value = float(sample.image.mean() / 255)
        subs = {name: float(value > 0.5) for name in SCORES[1:]}
        return ItemScore(value=value, scores={SCORES[0]: value, **subs})


if __name__ == "__main__":
    sys.exit(run(NAME, Marks, sys.argv[3:], os.environ))
