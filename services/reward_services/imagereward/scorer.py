"""ImageReward-v1.0 (arXiv 2304.05977): human preference for an image given its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.weights import WeightsError, fetch_weights
from reward_services.clip.pixels import check_aspect, clip_crop, clip_normalise

if TYPE_CHECKING:
    from tokenizers import Encoding

# ImageReward @ c1392c6: statistics of the raw reward, not part of the checkpoint.
MEAN = 0.16717362830052426
STD = 1.0333394966054072

RANGES = {
    "imagereward": ScoreRange(
        name="imagereward", description="standardised reward; about -2 to 2, not bounded"
    ),
    "raw": ScoreRange(name="raw", description="what the head says: imagereward * 1.0333 + 0.1672"),
}


class ImageRewardSettings(ScorerSettings):
    weights: str = "THUDM/ImageReward@5736be03b2652728fb87788c9797b0570450ab72"
    """hub repository[@commit] or local folder with ImageReward.pt and med_config.json"""
    tokenizer: str = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
    """hub repository[@commit] or local folder with vocab.txt"""


class Prepared(NamedTuple):
    crop: np.ndarray
    """(224, 224, 3) uint8"""
    tokens: Encoding


class ImageRewardScorer(Scorer):
    Settings = ImageRewardSettings
    settings: ImageRewardSettings

    def load(self, device: str) -> None:
        settings = self.settings
        weights = fetch_weights(settings.weights, files=("ImageReward.pt", "med_config.json"))
        tokenizer = fetch_weights(settings.tokenizer, files=("vocab.txt",))
        self._revision = f"{weights.identity} {tokenizer.identity}"

        from reward_services.imagereward.model import load
        from reward_services.imagereward.tokens import PromptTokenizer

        self._tokenizer = PromptTokenizer(tokenizer.one("vocab.txt"))
        self._model = load(weights.one("ImageReward.pt"), weights.one("med_config.json"), device)
        rows = self._model.text.config.vocab_size
        if len(self._tokenizer) != rows:
            raise WeightsError(
                f"{settings.tokenizer} has {len(self._tokenizer)} tokens, the model {rows}: "
                "it needs the vocabulary of bert-base-uncased"
            )

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="ImageReward-v1.0: people's preference for an image, given its prompt",
            score=RANGES["imagereward"],
            sub_scores=list(RANGES.values()),
            prompt_required=True,
            license="Apache-2.0 (ImageReward-v1.0 weights, bert-base-uncased vocabulary)",
            revision=self._revision,
        )

    def prepare(self, sample: Sample) -> Prepared:
        check_aspect(sample.image)
        return Prepared(
            clip_crop(sample.image, crop="round"), self._tokenizer.encode(sample.prompt)
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        prepared: list[Prepared] = [sample.prepared for sample in batch]
        rewards = self._model.rewards(
            np.stack([item.crop for item in prepared]),
            [item.tokens.ids for item in prepared],
            [item.tokens.attention_mask for item in prepared],
        )
        return [_score(*pair) for pair in zip(batch, rewards, strict=True)]

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        from reward_services.clip.gradients import resized_crop, with_gradients

        prepared: list[Prepared] = [sample.prepared for sample in batch]
        rewards, found = self._model.gradients(
            clip_normalise([item.crop for item in prepared]),
            [item.tokens.ids for item in prepared],
            [item.tokens.attention_mask for item in prepared],
        )
        scores = [_score(*pair) for pair in zip(batch, rewards, strict=True)]
        return with_gradients(scores, 1 / STD, found, batch, partial(resized_crop, crop="round"))


def _score(sample: Sample, raw: float) -> ItemScore:
    standardised = (raw - MEAN) / STD
    is_cut = bool(sample.prepared.tokens.overflowing)
    return ItemScore(
        value=standardised,
        scores={"imagereward": standardised, "raw": raw},
        details={"prompt_is_cut": is_cut} if sample.include_details else None,
    )


SCORER = ImageRewardScorer
