"""JPEG compressibility (DDPO's reward, in flow_grpo's units): how small is the image as a file?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import PIL
import PIL.features
from PIL import Image

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings

QUALITY = 95

RANGES = {
    "compressibility": ScoreRange(
        name="compressibility",
        maximum=0.0,
        description=f"-(size in kB) / 500 of the image as JPEG of quality {QUALITY}",
    ),
    "incompressibility_kb": ScoreRange(
        name="incompressibility_kb",
        minimum=0.0,
        description=f"size in kB (1000 bytes) of the image as JPEG of quality {QUALITY}",
    ),
}


class JpegSettings(ScorerSettings):
    score: Literal["compressibility", "incompressibility_kb"] = "compressibility"
    """which sub-score is the main score"""


class JpegScorer(Scorer):
    Settings = JpegSettings
    auto_device = "cpu"
    settings: JpegSettings

    def load(self, device: str) -> None:
        """Nothing to load: the encoder comes with Pillow."""

    def info(self) -> ScorerInfo:
        turbo = PIL.features.version_feature("libjpeg_turbo") or "none"
        return ScorerInfo(
            description="JPEG file size, as a reward for simple (or busy) images",
            score=RANGES[self.settings.score],
            sub_scores=list(RANGES.values()),
            license="no weights",
            revision=f"pillow-{PIL.__version__}-libjpeg-turbo-{turbo}-q{QUALITY}-{self.settings.score}",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        return [self._score(sample) for sample in batch]

    def _score(self, sample: Sample) -> ItemScore:
        file = io.BytesIO()
        Image.fromarray(sample.image).save(file, format="JPEG", quality=QUALITY)
        kilobytes = file.tell() / 1000
        scores = {"compressibility": -kilobytes / 500, "incompressibility_kb": kilobytes}
        return ItemScore(value=scores[self.settings.score], scores=scores)


SCORER = JpegScorer
