"""PickScore v1 (arXiv 2305.01569): how much people would prefer this image for this prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.weights import fetch_weights
from reward_services.clip.embeddings import with_embeddings
from reward_services.clip.pixels import check_aspect, clip_crop, clip_normalise

TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("vocab.json", "merges.txt")

RANGES = {
    "pickscore_26": ScoreRange(
        name="pickscore_26",
        description="pickscore / 26, flow_grpo's reward; about 0.7 to 0.95, not bounded by 1",
    ),
    "pickscore": ScoreRange(
        name="pickscore",
        description="exp(logit_scale) x cosine of image and prompt, as papers report it; about 18 to 25",
    ),
}


class PickScoreSettings(ScorerSettings):
    score: Literal["pickscore_26", "pickscore"] = "pickscore_26"
    """which sub-score is the main score"""
    weights: str = "yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800"
    """hub repository[@commit] or local folder of the model"""
    tokenizer: str | None = None
    """hub repository[@commit] or local folder of the tokenizer; none: the folder of the weights if it
    has one, else laion/CLIP-ViT-H-14-laion2B-s32B-b79K"""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """number format of the two towers"""


class PickScoreScorer(Scorer):
    Settings = PickScoreSettings
    settings: PickScoreSettings

    def load(self, device: str) -> None:
        settings = self.settings
        weights = fetch_weights(settings.weights, files=MODEL_FILES)
        tokenizer = fetch_weights(tokenizer_source(settings), files=TOKENIZER_FILES)
        self._identity = f"{weights.identity} {tokenizer.identity}"

        from reward_services.clip.model import ClipPairs

        self._clip = ClipPairs(weights.folder, tokenizer.folder, device, settings.dtype)

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="PickScore: people's preference among images of one prompt",
            score=RANGES[self.settings.score],
            sub_scores=list(RANGES.values()),
            prompt_required=True,
            license="PickScore_v1: none stated, its code MIT; tokenizer: MIT",
            revision=f"{self._identity} {self.settings.dtype} {self.settings.score}",
        )

    def prepare(self, sample: Sample) -> np.ndarray:
        check_aspect(sample.image)
        return clip_crop(sample.image)

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        pixels = np.stack([sample.prepared for sample in batch])
        cosines, features = self._clip.compare(pixels, [sample.prompt for sample in batch])
        return with_embeddings([self._score(cosine) for cosine in cosines], features, batch)

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        from reward_services.clip.gradients import resized_crop, with_gradients

        pixels = clip_normalise([sample.prepared for sample in batch])
        cosines, found = self._clip.gradients(pixels, [sample.prompt for sample in batch])
        factor = self._score(1.0).value
        scores = [self._score(cosine) for cosine in cosines]
        return with_gradients(scores, factor, found, batch, resized_crop)

    def _score(self, cosine: float) -> ItemScore:
        pickscore = self._clip.scale * cosine
        scores = {"pickscore_26": pickscore / 26, "pickscore": pickscore}
        return ItemScore(value=scores[self.settings.score], scores=scores)


def tokenizer_source(settings: PickScoreSettings) -> str:
    """PickScore's own repository has no tokenizer: it is that of the CLIP it was trained from."""
    if settings.tokenizer:
        return settings.tokenizer
    beside = Path(settings.weights).expanduser()
    has_one = all((beside / name).is_file() for name in TOKENIZER_FILES)
    return settings.weights if has_one else TOKENIZER


SCORER = PickScoreScorer
