"""A differentiable reward for the tiny model: how much a sign looks like its word.

The score is the squared correlation, over the pixels, of the image's luma with the drawn word, 0 to 1, so
that dark letters on light and light ones on dark count alike. No weights; gradients in closed form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from flow_trainer.tiny_sd3.signs import FONT, LETTER_WIDTH
from reward_api.errors import ItemFailure, Reason
from reward_api.wire.gradients import pack_gradient
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo

LUMA = np.array([0.299, 0.587, 0.114])
LEAST = 1e-6
"""Norm of a luma below which an image is blank."""


@cache
def template(word: str, height: int, width: int) -> np.ndarray:
    """(H, W) the word as `flow_trainer.tiny_sd3.signs` sets it, mean 0 and norm 1."""
    image = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(image)
    left = (width - LETTER_WIDTH * len(word)) / 2
    for i, letter in enumerate(word):
        centre = (left + LETTER_WIDTH * (i + 0.5), height / 2)
        draw.text(centre, letter, font=FONT, fill=255, anchor="mm")
    drawn = np.asarray(image, float)
    drawn -= drawn.mean()
    return drawn / np.linalg.norm(drawn)


def legibility(pixels: np.ndarray, word: str) -> tuple[float, np.ndarray]:
    """The score of pixels (H, W, 3) in 0..1, and its gradient with respect to them."""
    luma = pixels @ LUMA
    luma = luma - luma.mean()
    norm = float(np.linalg.norm(luma))
    if norm < LEAST:
        return 0.0, np.zeros_like(pixels)
    drawn, unit = template(word, *luma.shape), luma / norm
    correlation = float((drawn * unit).sum())
    slope = 2 * correlation * (drawn - correlation * unit) / norm
    return correlation**2, slope[..., None] * LUMA


class Legible(Scorer):
    def load(self, device: str) -> None:
        pass

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="squared correlation with the drawn word",
            score=ScoreRange(name="legible", minimum=0.0, maximum=1.0),
            prompt_required=True,
            revision="1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        return [self._outcome(sample, gradient=False) for sample in batch]

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        return [self._outcome(sample, gradient=True) for sample in batch]

    def _outcome(self, sample: Sample, *, gradient: bool) -> ItemScore | ItemFailure:
        quoted = re.search('"([^"]+)"', sample.prompt)
        if quoted is None:
            return ItemFailure(Reason.PROMPT_TARGET, 'the prompt has no word in "quotes"')
        value, slope = legibility(np.asarray(sample.image, float) / 255, quoted[1])
        score = ItemScore(value=value)
        return score.model_copy(update={"gradient": pack_gradient(slope)}) if gradient else score


SCORER = Legible
