"""LAION's improved aesthetic predictor (sac+logos+ava1), flow_grpo's aesthetic reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.aesthetic.head import FILE, SHA256, check_digest, load_head
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.weights import WeightsError, fetch_weights
from reward_services.clip.embeddings import with_embeddings
from reward_services.clip.pixels import check_aspect, clip_crop, clip_normalise

AESTHETIC = ScoreRange(
    name="aesthetic",
    description="people's rating from 1 to 10 as predicted; about 4 to 7, not bounded",
)


class AestheticSettings(ScorerSettings):
    head: str = ""
    """the file sac+logos+ava1-l14-linearMSE.pth of the GitHub repository
    christophschuhmann/improved-aesthetic-predictor, or a hub repository[@commit] whose only .pth
    file it is"""
    head_sha256: str = SHA256
    """SHA-256 that the head file must have; any: whatever it has"""
    weights: str = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
    """hub repository[@commit] or local folder of the CLIP model"""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """number format of the image tower; the head is always float64"""


class AestheticScorer(Scorer):
    Settings = AestheticSettings
    settings: AestheticSettings

    def load(self, device: str) -> None:
        settings = self.settings
        if not settings.head:
            raise WeightsError(
                f"set REWARD_AESTHETIC_HEAD (--head) to the file {FILE}: it is published in the "
                "GitHub repository christophschuhmann/improved-aesthetic-predictor, not on the hub"
            )
        head_file = fetch_weights(settings.head, files=("*.pth",)).one("*")
        digest = check_digest(head_file, settings.head_sha256)
        weights = fetch_weights(settings.weights, files=("config.json", "model.safetensors"))
        self._identity = f"{weights.identity} head:{digest[:12]}"

        from reward_services.aesthetic.model import ImageTower

        self._head = load_head(head_file)
        self._tower = ImageTower(weights.folder, device, settings.dtype)
        if self._tower.width != len(self._head.weight):
            raise WeightsError(
                f"{head_file.name} is for features of {len(self._head.weight)} numbers; "
                f"{settings.weights} gives {self._tower.width}"
            )

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="LAION's aesthetic predictor: how pleasing the image is, whatever it shows",
            score=AESTHETIC,
            sub_scores=[AESTHETIC],
            license="MIT (OpenAI CLIP), Apache-2.0 (head)",
            revision=f"{self._identity} {self.settings.dtype}",
        )

    def prepare(self, sample: Sample) -> np.ndarray:
        check_aspect(sample.image)
        return clip_crop(sample.image)

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        features = self._tower.features(np.stack([sample.prepared for sample in batch]))
        values = self._head.scores(features)
        scores = [ItemScore(value=value, scores={"aesthetic": value}) for value in values]
        return with_embeddings(scores, features, batch)

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        from reward_services.clip.gradients import resized_crop, with_gradients

        pixels = clip_normalise([sample.prepared for sample in batch])
        values, found = self._tower.gradients(pixels, self._head.weight, self._head.bias)
        scores = [ItemScore(value=value, scores={"aesthetic": value}) for value in values]
        return with_gradients(scores, 1.0, found, batch, resized_crop)


SCORER = AestheticScorer
