"""A reward for tests: no network, no model, no monkeypatching.

::

    reward = FakeReward(lambda image, prompt, metadata: image.mean() / 255)
    client = RewardClient(transport=reward)
    assert client.score([np.zeros((8, 8, 3), np.uint8)], ["black"]).values == [0.0]
    assert reward.requests[0].items[0].prompt == "black"

It goes through everything but the wire: rounding, encoding, chunking, retries, and decoding of the
images as a service does it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reward_api.errors import InvalidRequest, ItemFailure, Reason, RewardError, Unavailable
from reward_api.wire.gradients import pack_gradient
from reward_api.wire.images import decode_image, unpack
from reward_api.wire.messages import (
    GradientRequest,
    Image,
    Item,
    ItemError,
    ItemResult,
    ItemScore,
    RewardMetadata,
    ScoreRange,
    ScoreRequest,
    ScoreResponse,
)

ScoreFunction = Callable[[np.ndarray, str, Mapping[str, Any]], float | ItemScore]

GradientFunction = Callable[[np.ndarray, str, Mapping[str, Any]], np.ndarray]


def brightness(image: np.ndarray, prompt: str, metadata: Mapping[str, Any]) -> float:
    """Mean of all channels, in [0, 1]."""
    return float(image.mean() / 255)


class FakeReward:
    """A `Transport` that scores in the process.

    ``score`` gets uint8 RGB [H, W, 3], the prompt and the metadata of one item; it returns a number
    or an ItemScore, or raises ItemFailure for that item. ``delay_s`` passes before each answer.
    ``gradient`` gets the same and returns d score / d pixel (H, W, 3), pixels in 0..1; without it
    ScoreGradient is refused, as by a reward that has none. ``requests`` holds what arrived.
    """

    def __init__(
        self,
        score: ScoreFunction = brightness,
        *,
        name: str = "fake",
        revision: str = "fake-1",
        delay_s: float = 0.0,
        gradient: GradientFunction | None = None,
    ) -> None:
        self.name = name
        self.revision = revision
        self.delay_s = delay_s
        self.is_ready = True
        self.requests: list[ScoreRequest] = []
        self._score = score
        self._gradient = gradient
        self._failures: deque[RewardError] = deque()

    def fail_next(self, error: RewardError, times: int = 1) -> None:
        """The next calls fail with `error`."""
        self._failures.extend([error] * times)

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreResponse:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        if self._failures:
            raise self._failures.popleft()
        wants_gradient = isinstance(request, GradientRequest)
        if wants_gradient and self._gradient is None:
            raise InvalidRequest(Reason.UNSUPPORTED, f"{self.name} has no gradient")
        images = unpack(request.packed_images) if request.packed_images else None
        return ScoreResponse(
            model=self.name,
            version="test",
            revision=self.revision,
            request_id=request.request_id,
            results=[
                self._result(
                    item,
                    images[i] if images else item.image,
                    request.include_details,
                    wants_gradient,
                )
                for i, item in enumerate(request.items)
            ],
            batch_sizes=[len(request.items)],
        )

    async def metadata(self, *, timeout_s: float) -> RewardMetadata:
        return RewardMetadata(
            name=self.name,
            revision=self.revision,
            score=ScoreRange(name=self.name),
            has_gradient=self._gradient is not None,
        )

    async def ready(self, *, timeout_s: float) -> None:
        if not self.is_ready:
            raise Unavailable(Reason.LOADING, f"{self.name} is not ready")

    async def close(self) -> None:
        """There is nothing to close."""

    def _result(
        self, item: Item, image: Image | None, include_details: bool, wants_gradient: bool
    ) -> ItemResult:
        try:
            if image is None:
                raise ItemFailure(Reason.IMAGE_DECODE, "the item has no image")
            pixels = decode_image(image)
            score = self._score(pixels, item.prompt, item.metadata)
        except ItemFailure as failure:
            return ItemResult(id=item.id, error=ItemError.of(failure))
        if not isinstance(score, ItemScore):
            score = ItemScore(value=score)
        if not include_details:
            score = score.model_copy(update={"details": None})
        if wants_gradient and self._gradient is not None:
            gradient = pack_gradient(self._gradient(pixels, item.prompt, item.metadata))
            score = score.model_copy(update={"gradient": gradient})
        return ItemResult(id=item.id, score=score)
