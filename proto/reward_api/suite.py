"""Several rewards of the same images: encoded once, asked at the same time, added with weights."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from reward_api.batch import ScoreBatch
from reward_api.client import AsyncRewardClient, gather
from reward_api.errors import ItemFailure, ItemsFailed
from reward_api.wire.images import EncodedImages, encode_images
from reward_api.wire.messages import RewardMetadata


@dataclass
class SuiteScores:
    """The scores of N images under several rewards."""

    values: np.ndarray
    """float64 [N]: the sum of weight x score; NaN where a reward of non-zero weight has none."""
    valid: np.ndarray
    """bool [N]"""
    rewards: dict[str, ScoreBatch]
    """Each reward's own batch, by name, in the suite's order."""
    errors: dict[int, ItemFailure]
    """For each invalid image, the first failure among the rewards that count."""

    def __len__(self) -> int:
        return len(self.values)


class AsyncRewardSuite:
    """Rewards by name, each a URL, a list of replicas' URLs or a client.

    ``weights`` names every reward (None: 1.0 each). A reward of weight 0 is asked and reported but
    neither changes the sum nor makes it invalid. A failure is never a number: an image without a
    score from a reward that counts is invalid in the sum. ``on_error`` is "raise" (ItemsFailed) or
    "nan". The other options are those of AsyncRewardClient, for the rewards given as URLs.
    """

    def __init__(
        self,
        rewards: Mapping[str, str | Sequence[str] | AsyncRewardClient],
        weights: Mapping[str, float] | None = None,
        *,
        on_error: Literal["raise", "nan"] = "raise",
        **options: Any,
    ) -> None:
        if not rewards:
            raise ValueError("a suite needs at least one reward")
        if weights is not None and set(weights) != set(rewards):
            raise ValueError(
                f"weights are given for {sorted(weights)}, the rewards are {sorted(rewards)}"
            )
        wrong = {n: w for n, w in (weights or {}).items() if not math.isfinite(w)}
        if wrong:
            raise ValueError(f"weights: {wrong} is not finite; give each reward a number")
        if on_error not in ("raise", "nan"):
            raise ValueError(f'on_error={on_error!r}: choose "raise" or "nan"')
        self.weights = {name: 1.0 if weights is None else weights[name] for name in rewards}
        self._on_error = on_error
        self._clients = {
            name: reward
            if isinstance(reward, AsyncRewardClient)
            else AsyncRewardClient(reward, **options)
            for name, reward in rewards.items()
        }
        self._own = [name for name, r in rewards.items() if not isinstance(r, AsyncRewardClient)]

    async def score(
        self,
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        **options: Any,
    ) -> SuiteScores:
        """Scores N images under every reward; the options are those of AsyncRewardClient.score.

        A reward that does not answer at all leaves its images invalid; the caller's own mistakes
        (InvalidRequest, AuthenticationFailed) are raised.
        """
        on_error = options.pop("on_error", self._on_error)
        rounded = images if isinstance(images, EncodedImages) else encode_images(images)
        forms = {client.image_format: client for client in self._clients.values()}
        sent = {form: await client.encode(rounded) for form, client in forms.items()}
        batches: dict[str, ScoreBatch] = {}

        async def ask(name: str, client: AsyncRewardClient) -> None:
            batches[name] = await client.score(
                sent[client.image_format], prompts, metadata, on_error="nan", **options
            )

        await gather(ask(name, client) for name, client in self._clients.items())
        scores = self._add({name: batches[name] for name in self._clients})
        if scores.errors and on_error == "raise":
            raise ItemsFailed(scores.errors, len(scores))
        return scores

    async def metadata(self, *, timeout_s: float = 10.0) -> dict[str, RewardMetadata]:
        """Of every reward, by name. Raises the first RewardError."""
        answers = await asyncio.gather(
            *(client.metadata(timeout_s=timeout_s) for client in self._clients.values())
        )
        return dict(zip(self._clients, answers, strict=True))

    async def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Returns when every reward has a replica that takes work. Raises Unavailable."""
        await gather(client.wait_ready(timeout_s) for client in self._clients.values())

    async def close(self) -> None:
        """Closes the clients that the suite made."""
        for name in self._own:
            await self._clients[name].close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _add(self, batches: dict[str, ScoreBatch]) -> SuiteScores:
        size = len(next(iter(batches.values())))
        values, valid = np.zeros(size), np.ones(size, bool)
        errors: dict[int, ItemFailure] = {}
        for name, batch in batches.items():
            weight = self.weights[name]
            if weight == 0:
                continue
            values += weight * batch.values
            valid &= batch.valid
            for i, failure in batch.errors.items():
                errors.setdefault(i, ItemFailure(failure.reason, f"{name}: {failure.message}"))
        values[~valid] = np.nan
        return SuiteScores(values, valid, batches, dict(sorted(errors.items())))
