"""A reward service as the custom reward of miles-diffusion::

    --custom-rm-path reward_api.callers.miles.score

The service's URL is the environment variable MILES_REWARD_URL (replicas with commas between), its token
REWARD_TOKEN. Written after radixark/miles_diffusion @ 2929e49 (2026-05-10), whose trainer has not been run
with it. A failure raises; it is never the score 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from reward_api.client import AsyncRewardClient
from reward_api.errors import InvalidRequest, Reason

URL_VARIABLE = "MILES_REWARD_URL"


async def score(args: Any, samples: Sequence[Any], **_: Any) -> list[float]:
    """[N scores] of N samples.

    ``sample.prompt`` is a str, ``sample.generated_output`` [C, T, H, W] or [C, H, W] with T = 1: uint8,
    or floats in [0, 1] or [0, 255]. ``sample.metadata``, where there is any, is the item's. ``args`` is
    not read.

    Raises InvalidRequest without a URL and for videos; RewardError, ItemsFailed for what has no score.
    """
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"{URL_VARIABLE} is not set: give it the reward service's URL"
        )
    batch = await _client(url, os.environ.get("REWARD_TOKEN") or None).score(
        [_picture(sample.generated_output, i) for i, sample in enumerate(samples)],
        [sample.prompt for sample in samples],
        [getattr(sample, "metadata", None) or None for sample in samples],
    )
    return batch.values.tolist()


def _picture(output: Any, index: int) -> np.ndarray:
    """[C, H, W], uint8 or floats in [0, 1]."""
    if hasattr(output, "detach"):
        output = output.detach()
        output = (output.float() if output.is_floating_point() else output).cpu().numpy()
    picture = np.asarray(output)
    if picture.ndim == 4 and picture.shape[1] == 1:
        picture = picture[:, 0]
    if picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise InvalidRequest(
            Reason.IMAGE_SHAPE,
            f"sample {index}: generated_output has the shape {list(picture.shape)}; one image "
            "[C, 1, H, W] or [C, H, W] is scored, and no video",
        )
    # Above 2 it is surely on the other scale; the client refuses what fits neither.
    if picture.dtype.kind == "f" and picture.size and 2 < picture.max() <= 255.5:
        picture = picture / picture.dtype.type(255)
    return np.moveaxis(picture, 0, -1)


@lru_cache(maxsize=8)
def _client(url: str, token: str | None) -> AsyncRewardClient:
    return AsyncRewardClient(url.split(","), token=token)
