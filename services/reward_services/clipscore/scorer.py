"""CLIP ViT-L/14 similarity of image and prompt, as flow_grpo and DiffusionNFT train on it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.weights import fetch_weights
from reward_services.clip.embeddings import with_embeddings
from reward_services.clip.pixels import in_half

FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")

RANGES = {
    "flow_grpo": ScoreRange(
        name="flow_grpo", description="logit / 30, flow_grpo's reward; about 0.6 to 1.1"
    ),
    "diffusionnft": ScoreRange(
        name="diffusionnft", description="logit / 100, DiffusionNFT's reward; about 0.2 to 0.35"
    ),
    "cosine": ScoreRange(
        name="cosine",
        minimum=-1.0,
        maximum=1.0,
        description="cosine of image and prompt; a logit is exp(logit_scale) times this",
    ),
}


class ClipScoreSettings(ScorerSettings):
    score: Literal["flow_grpo", "diffusionnft", "cosine"] = "flow_grpo"
    """which sub-score is the main score"""
    weights: str = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
    """hub repository[@commit] or local folder of the model and its tokenizer"""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """number format of the two towers"""


class ClipScoreScorer(Scorer):
    Settings = ClipScoreSettings
    settings: ClipScoreSettings

    def load(self, device: str) -> None:
        settings = self.settings
        weights = fetch_weights(settings.weights, files=FILES)
        self._identity = weights.identity

        from reward_services.clip.model import ClipPairs

        self._clip = ClipPairs(weights.folder, weights.folder, device, settings.dtype)

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="CLIPScore: similarity of image and prompt by CLIP ViT-L/14",
            score=RANGES[self.settings.score],
            sub_scores=list(RANGES.values()),
            prompt_required=True,
            license="MIT (OpenAI CLIP)",
            revision=f"{self._identity} {self.settings.dtype} {self.settings.score}",
        )

    def prepare(self, sample: Sample) -> np.ndarray:
        from reward_services.clipscore.pixels import clipscore_pixels

        return in_half(clipscore_pixels(sample.image), self.settings.dtype)

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        pixels = np.stack([sample.prepared for sample in batch])
        cosines, features = self._clip.compare(pixels, [sample.prompt for sample in batch])
        return with_embeddings([self._score(cosine) for cosine in cosines], features, batch)

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        from reward_services.clip.gradients import resized_crop, with_gradients

        pixels = np.stack([sample.prepared for sample in batch])
        cosines, found = self._clip.gradients(pixels, [sample.prompt for sample in batch])
        factor = self._score(1.0).value
        scores = [self._score(cosine) for cosine in cosines]
        affine = partial(resized_crop, mode="bilinear", crop="round")
        return with_gradients(scores, factor, found, batch, affine)

    def _score(self, cosine: float) -> ItemScore:
        logit = self._clip.scale * cosine
        scores = {"flow_grpo": logit / 30, "diffusionnft": logit / 100, "cosine": cosine}
        return ItemScore(value=scores[self.settings.score], scores=scores)


SCORER = ClipScoreScorer
