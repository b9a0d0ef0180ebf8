"""Human Preference Score v2.1 (arXiv 2306.09341): which image would people choose for this prompt?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.weights import fetch_weights
from reward_services.clip.embeddings import with_embeddings
from reward_services.clip.pixels import in_half

CHECKPOINT = "HPS_v2.1_compressed.pt"
CONFIG = "open_clip_config.json"

RANGES = {
    "hpsv2": ScoreRange(
        name="hpsv2",
        minimum=-1.0,
        maximum=1.0,
        description="cosine of image and prompt, as flow_grpo; about 0.2 to 0.35",
    ),
    "hpsv2_100": ScoreRange(
        name="hpsv2_100",
        minimum=-100.0,
        maximum=100.0,
        description="100 x cosine, as in the benchmark's tables",
    ),
}


class Hpsv2Settings(ScorerSettings):
    score: Literal["hpsv2", "hpsv2_100"] = "hpsv2"
    """which sub-score is the main score"""
    weights: str = "xswu/HPSv2@697403c78157020a1ae59d23f111aa58ced35b0a"
    """hub repository[@commit], local folder or file of HPS_v2.1_compressed.pt"""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """number format of the two towers"""


class Hpsv2Scorer(Scorer):
    Settings = Hpsv2Settings
    settings: Hpsv2Settings

    def load(self, device: str) -> None:
        settings = self.settings
        weights = fetch_weights(settings.weights, files=(CHECKPOINT,))
        self._identity, config = weights.identity, None
        if (weights.folder / CONFIG).is_file():
            self._identity += f" {fetch_weights(str(weights.folder), files=(CONFIG,)).identity}"
            config = read_config(weights.folder / CONFIG)

        from reward_services.hpsv2.model import HpsModel

        self._model = HpsModel(weights.one("*"), config, device, settings.dtype)

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="HPSv2.1: people's preference among images of one prompt",
            score=RANGES[self.settings.score],
            sub_scores=list(RANGES.values()),
            prompt_required=True,
            license="Apache-2.0 (HPSv2.1 weights)",
            revision=f"{self._identity} {self.settings.dtype} {self.settings.score}",
        )

    def prepare(self, sample: Sample) -> np.ndarray:
        from reward_services.hpsv2.pixels import hpsv2_pixels

        return in_half(hpsv2_pixels(sample.image), self.settings.dtype)

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        pixels = np.stack([sample.prepared for sample in batch])
        cosines, features = self._model.compare(pixels, [sample.prompt for sample in batch])
        return with_embeddings([self._score(cosine) for cosine in cosines], features, batch)

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        from reward_services.clip.gradients import with_gradients
        from reward_services.hpsv2.pixels import fitted

        pixels = np.stack([sample.prepared for sample in batch])
        cosines, found = self._model.gradients(pixels, [sample.prompt for sample in batch])
        factor = self._score(1.0).value
        scores = [self._score(cosine) for cosine in cosines]
        return with_gradients(scores, factor, found, batch, fitted)

    def _score(self, cosine: float) -> ItemScore:
        scores = {"hpsv2": cosine, "hpsv2_100": 100 * cosine}
        return ItemScore(value=scores[self.settings.score], scores=scores)


def read_config(path: Path) -> dict[str, Any]:
    """`model_cfg` of open_clip's own configuration file."""
    return json.loads(path.read_text(encoding="utf-8"))["model_cfg"]


SCORER = Hpsv2Scorer
