"""A reward for dialect tests: the mean brightness; prompts and metadata say what else happens."""

from __future__ import annotations

from collections.abc import Sequence

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo

FAILURES = {
    "broken": ItemFailure(Reason.MODEL_ERROR, "told to fail"),
    "later": ItemFailure(Reason.OUT_OF_MEMORY, "no memory just now"),
    "babble": ItemFailure(Reason.JUDGE_PARSE, "no number in the answer"),
}


class Judged(Scorer):
    """`metadata.scores` become the sub-scores beside `length`, the prompt's."""

    def load(self, device: str) -> None:
        self.metadata: list[dict] = []

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="mean pixel value",
            score=ScoreRange(name="judged", minimum=0.0, maximum=1.0),
            sub_scores=[ScoreRange(name="length")],
            revision="r1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        self.metadata += [dict(sample.metadata) for sample in batch]
        return [FAILURES.get(sample.prompt) or _score(sample) for sample in batch]


def _score(sample: Sample) -> ItemScore:
    scores = {"length": float(len(sample.prompt)), **sample.metadata.get("scores", {})}
    return ItemScore(value=float(sample.image.mean() / 255), scores=scores)
