"""A real reward service whose details show what the page can draw.

`--kind lines` answers as an OCR reward does, `--kind objects` as a detector. The prompt "failure" has
no score, and with the prompt "wait" the answer waits for the file that EVIDENCE_GATE names. The model
loads when the file that EVIDENCE_LOAD_GATE names is there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.run import run

FOUND = ScoreRange(name="found", minimum=0.0, maximum=1.0, description="share found")
EXACT = ScoreRange(name="exact", minimum=0.0, maximum=1.0, description="whether all is found")
DISTANCE = ScoreRange(
    name="distance", minimum=0.0, higher_is_better=False, description="how far it is"
)
LINES = {
    "target": "open",
    "text": "OPEN",
    "lines": [
        {"text": "OPEN", "confidence": 0.98, "box": [[96, 48], [288, 60], [286, 132], [94, 120]]}
    ],
}
OBJECTS = {
    "tag": "color_attr",
    "objects": [
        {"class": "dog", "score": 0.91, "box": [20, 20, 120, 180], "color": "red"},
        {"class": "car", "score": 0.755, "box": [200, 10, 380, 150], "color": None},
        {"class": "dog", "score": 0.31, "box": [0, 0, 0, 0]},
    ],
    "clauses": [
        {"class": "dog", "count": 1, "failure": ""},
        {"class": "car", "count": 2, "failure": "2 car expected, 1 found", "soft": [0.5, 0]},
    ],
}
SCHEMA = {
    "type": "object",
    "required": ["tag", "include"],
    "properties": {
        "tag": {"enum": ["color_attr", "counting"]},
        "include": {"type": "array", "items": {"$ref": "#/$defs/Clause"}},
        "comment": {"type": "string"},
    },
    "$defs": {
        "Clause": {
            "type": "object",
            "required": ["class", "count"],
            "properties": {
                "class": {"type": "string", "examples": ["dog"]},
                "count": {"type": "integer", "minimum": 1},
                "color": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        }
    },
}


class EvidenceSettings(ScorerSettings):
    kind: Literal["lines", "objects"] = "lines"
    """what the details look like"""


def wait_for_file(variable: str) -> None:
    while variable in os.environ and not Path(os.environ[variable]).exists():
        time.sleep(0.02)


class Evidence(Scorer):
    Settings = EvidenceSettings

    def load(self, device: str) -> None:
        wait_for_file("EVIDENCE_LOAD_GATE")

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="Finds the same things in every image",
            score=FOUND,
            sub_scores=[FOUND, EXACT, DISTANCE],
            metadata_schema=json.dumps(SCHEMA) if self.settings.kind == "objects" else "",
            revision="1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        return [self._score(sample) for sample in batch]

    def _score(self, sample: Sample) -> ItemScore | ItemFailure:
        if sample.prompt == "failure":
            return ItemFailure(Reason.JUDGE_PARSE, "no number in the judge's answer")
        if sample.prompt == "wait":
            wait_for_file("EVIDENCE_GATE")
        details: dict[str, Any] = dict(LINES if self.settings.kind == "lines" else OBJECTS)
        details["prompt"] = sample.prompt
        details["metadata"] = dict(sample.metadata)
        scores = {"found": 0.75, "exact": 0.0, "distance": 1234.5}
        return ItemScore(value=scores["found"], scores=scores, details=details)


if __name__ == "__main__":
    sys.exit(run("evidence", Evidence, sys.argv[1:], os.environ))
