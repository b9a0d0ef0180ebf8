"""From wire items to samples: limits, decoding, the reward's own `prepare`. Runs in the pool."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from reward_api.errors import InvalidRequest, ItemFailure, Overloaded, Reason
from reward_api.wire.images import ImageLimits, check_bytes, check_sides, decode_image
from reward_api.wire.messages import GradientRequest, Item, PackedImages, ScoreRequest
from reward_services.chassis.batching.isolation import summary
from reward_services.chassis.scorer import Sample, Scorer
from reward_services.chassis.settings import ServiceSettings

logger = logging.getLogger(__name__)


class Intake:
    """Checks requests and makes samples of items, within the service's limits."""

    def __init__(self, scorer: Scorer, settings: ServiceSettings) -> None:
        self._scorer = scorer
        self._settings = settings
        self._has_prepare = type(scorer).prepare is not Scorer.prepare
        self._image_limits = ImageLimits(
            max_image_pixels=settings.max_image_pixels,
            max_image_side=settings.max_image_side,
            max_image_bytes=settings.max_image_bytes,
        )
        self.num_threads = settings.prepare_threads or min(8, os.cpu_count() or 1)
        self.prompt_required = False

    def check(self, model: str, request: ScoreRequest) -> None:
        """What is wrong with the request as a whole. Raises InvalidRequest."""
        count = len(request.items)
        limit = self._settings.max_request_items
        if request.model and request.model != model:
            raise InvalidRequest(
                Reason.MODEL_NOT_FOUND, f"this service is {model!r}, not {request.model[:64]!r}"
            )
        if isinstance(request, GradientRequest) and not self._scorer.has_gradient:
            raise InvalidRequest(
                Reason.UNSUPPORTED,
                f"{model} has no gradient with respect to pixels (has_gradient in its metadata): ask for "
                "scores only",
            )
        if count == 0:
            raise InvalidRequest(Reason.INVALID_REQUEST, "items is empty: send at least one")
        if count > limit:
            raise InvalidRequest(
                Reason.REQUEST_TOO_LARGE,
                f"{count} items; max_request_items is {limit}: send several requests",
            )
        if not 0 <= request.priority <= 3:
            raise InvalidRequest(
                Reason.INVALID_REQUEST, f"priority is {request.priority}; it goes from 1 to 3"
            )
        if request.packed_images is not None:
            _check_packed(request, request.packed_images, self._settings)

    def is_trivial(self, request: ScoreRequest) -> bool:
        """Whether preparing the request only slices buffers: less work than handing it over."""
        if self._has_prepare or any(item.metadata for item in request.items):
            return False
        if request.packed_images is not None:
            return request.packed_images.channels == 3
        images = [item.image for item in request.items]
        return all(i is None or (i.is_raw and i.channels == 3) for i in images)

    def spans(self, request: ScoreRequest) -> list[range]:
        """How the items are spread over the pool: in one piece where nothing is computed."""
        count = len(request.items)
        is_light = request.packed_images is not None or all(
            item.image is None or item.image.is_raw for item in request.items
        )
        pieces = 1 if is_light and not self._has_prepare else min(self.num_threads, count)
        size = math.ceil(count / pieces)
        return [range(i, min(i + size, count)) for i in range(0, count, size)]

    def prepare(
        self,
        request: ScoreRequest,
        span: range,
        is_wanted: Callable[[], bool],
        hold: Callable[[int], None] = lambda _: None,
    ) -> list[Sample | ItemFailure]:
        """One sample or failure per item of `span`; fewer when nobody wants them any more. `hold` is
        asked before a file becomes so many bytes; what it raises (a RewardError) is the call's."""
        prepared: list[Sample | ItemFailure] = []
        packed = request.packed_images
        try:
            pixels = None if packed is None else _packed_pixels(packed, self._image_limits)
        except ItemFailure as failure:
            return [failure] * len(span)
        for i in span:
            if not is_wanted():
                break
            try:
                prepared.append(
                    self._sample(
                        request.items[i],
                        None if pixels is None else pixels[i],
                        request.include_details,
                        isinstance(request, GradientRequest),
                        hold,
                    )
                )
            except ItemFailure as failure:
                prepared.append(failure)
            except (InvalidRequest, Overloaded):
                raise
            except Exception as error:
                logger.exception("preparing an item failed")
                prepared.append(
                    ItemFailure(Reason.MODEL_ERROR, f"preparing the item failed: {summary(error)}")
                )
        return prepared

    def _sample(
        self,
        item: Item,
        packed: np.ndarray | None,
        include_details: bool,
        wants_gradient: bool,
        hold: Callable[[int], None],
    ) -> Sample:
        self._check_prompt(item.prompt)
        if item.metadata:
            self._check_metadata(item.metadata)
        image = self._image(item, packed, hold)
        sample = Sample(image, item.prompt, item.metadata, include_details, wants_gradient)
        if not self._has_prepare:
            return sample
        return replace(sample, prepared=self._scorer.prepare(sample))

    def _check_prompt(self, prompt: str) -> None:
        if self.prompt_required and not prompt.strip():
            raise ItemFailure(Reason.MISSING_PROMPT, "this reward needs a prompt; it is empty")
        try:
            size = len(prompt.encode())
        except UnicodeEncodeError:
            raise ItemFailure(
                Reason.INVALID_REQUEST, "the prompt holds a lone surrogate: it is not valid Unicode"
            ) from None
        limit = self._settings.max_prompt_bytes
        if size > limit:
            raise ItemFailure(
                Reason.INVALID_REQUEST,
                f"the prompt has {size} bytes; max_prompt_bytes is {limit}",
            )

    def _check_metadata(self, metadata: Mapping[str, Any]) -> None:
        depth_limit = self._settings.max_metadata_depth
        if not _is_within_depth(metadata, depth_limit):
            raise ItemFailure(
                Reason.SCHEMA,
                f"the metadata is nested deeper than max_metadata_depth ({depth_limit})",
            )
        size = len(json.dumps(metadata, separators=(",", ":")))
        if size > self._settings.max_metadata_bytes:
            raise ItemFailure(
                Reason.SCHEMA,
                f"the metadata has {size} bytes of JSON; max_metadata_bytes is "
                f"{self._settings.max_metadata_bytes}",
            )

    def _image(
        self, item: Item, packed: np.ndarray | None, hold: Callable[[int], None]
    ) -> np.ndarray:
        if packed is not None:
            return packed
        if item.image is None:
            raise ItemFailure(Reason.IMAGE_DECODE, "the item has no image")
        return decode_image(item.image, self._image_limits, hold)


def _check_packed(request: ScoreRequest, packed: PackedImages, settings: ServiceSettings) -> None:
    if packed.count != len(request.items):
        raise InvalidRequest(
            Reason.COUNT_MISMATCH, f"{packed.count} packed images for {len(request.items)} items"
        )
    if any(item.image is not None for item in request.items):
        raise InvalidRequest(
            Reason.COUNT_MISMATCH, "items carry images of their own beside packed_images"
        )
    if packed.channels not in (1, 3):
        raise InvalidRequest(
            Reason.INVALID_REQUEST,
            f"packed_images has {packed.channels} channels; 1 or 3 are taken",
        )
    expected = packed.count * packed.height * packed.width * packed.channels
    if len(packed.data) != expected:
        raise InvalidRequest(
            Reason.IMAGE_SHAPE,
            f"packed_images has {len(packed.data)} bytes where its shape needs {expected}",
        )


def _packed_pixels(packed: PackedImages, limits: ImageLimits) -> np.ndarray:
    """[N, H, W, 3] uint8, a view of the request's bytes where they are RGB. Raises ItemFailure
    (IMAGE_TOO_LARGE), which is that of every image: they are alike."""
    check_bytes(packed.height * packed.width * packed.channels, limits)
    check_sides(packed.width, packed.height, limits)
    shape = (packed.count, packed.height, packed.width, packed.channels)
    pixels = np.frombuffer(packed.data, np.uint8).reshape(shape)
    if packed.channels == 1:
        pixels = np.repeat(pixels, 3, axis=3)
    pixels.flags.writeable = False
    return pixels


def _is_within_depth(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, Mapping) else node)
            if isinstance(child, (Mapping, list))
        ]
        if not level:
            return True
    return False
