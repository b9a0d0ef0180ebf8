"""The only place where the trainer knows that rewards exist.

Images go to every reward as soon as a micro-batch is decoded (`submit`), from a thread with its own
event loop, while other work goes on; `collect` waits for what is still missing and measures the wait.
A sample that fails or comes late is masked. Nothing is ever scored 0 because a server died.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from flow_trainer.config import Reward, Scoring
from flow_trainer.errors import ConfigError, OutageError, ScoringError
from flow_trainer.prompts import Prompt
from flow_trainer.throughput import Traffic
from reward_api import (
    AsyncRewardClient,
    AsyncRewardSuite,
    DeadlineExceeded,
    Overloaded,
    ScoreBatch,
    SuiteScores,
    Unavailable,
)

CHECK_S = 2.0
"""Seconds between looks at the caller while waiting for a service."""


@dataclass(slots=True)
class Scores:
    """Scores of N samples, in the order of their rows."""

    values: np.ndarray
    """(N,) float64 weighted sum; NaN where not valid."""
    valid: np.ndarray
    """(N,) bool: every reward scored the sample."""
    rewards: dict[str, ScoreBatch] = field(default_factory=dict)
    wait_s: float = 0.0
    """Seconds in which nothing was done but wait for rewards."""

    def mean(self) -> float | None:
        return float(self.values[self.valid].mean()) if self.valid.any() else None

    def reward_means(self) -> dict[str, float]:
        """Mean of every reward and sub-score over the samples it scored."""
        means: dict[str, float] = {}
        for name, batch in self.rewards.items():
            if batch.valid.any():
                means[name] = float(batch.values[batch.valid].mean())
                for sub, values in batch.scores.items():
                    means[f"{name}.{sub}"] = float(np.asarray(values)[batch.valid].mean())
        return means

    def revisions(self) -> dict[str, str]:
        """Of every reward that scored something; joined by + where replicas differ."""
        return {n: "+".join(sorted(b.revisions)) for n, b in self.rewards.items() if b.revisions}

    def require_one(self) -> None:
        """Raises ScoringError when no sample has a score."""
        if not self.valid.any():
            first = next(e for batch in self.rewards.values() for e in batch.errors.values())
            raise ScoringError(f"none of {len(self.valid)} samples has a score, e.g. {first}")

    def failures(self) -> dict[str, int]:
        """How many samples failed, by reward and reason."""
        counts: dict[str, int] = {}
        for name, batch in self.rewards.items():
            for failure in batch.errors.values():
                key = f"{name}.{failure.reason}"
                counts[key] = counts.get(key, 0) + 1
        return counts

    def unreachable(self) -> list[str]:
        """Rewards that scored nothing although every failure could pass with time: an outage."""
        return [
            name
            for name, batch in self.rewards.items()
            if len(batch.values)
            and not batch.valid.any()
            and all(failure.retryable for failure in batch.errors.values())
        ]


@dataclass(slots=True)
class Job:
    """A micro-batch on its way to the rewards."""

    rows: range
    images: np.ndarray
    prompts: list[str]
    metadata: list[dict[str, Any]]
    result: Future[SuiteScores]


class Scorer:
    """Rewards of a recipe behind one asynchronous queue. Use from one thread; close when done."""

    def __init__(self, rewards: dict[str, Reward], scoring: Scoring) -> None:
        self._config = scoring
        self.traffic = Traffic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoring", daemon=True)
        self._thread.start()
        self._clients = {
            name: AsyncRewardClient(
                reward.url,
                token=_token(name, reward),
                timeout_s=scoring.timeout_s,
                encoding=scoring.encoding,
            )
            for name, reward in rewards.items()
        }
        weights = {name: reward.weight for name, reward in rewards.items()}
        self._suite = AsyncRewardSuite(self._clients, weights, on_error="nan")

    def submit(self, rows: range, images: Tensor, prompts: Sequence[Prompt]) -> Job:
        """Starts scoring images (b, H, W, 3) uint8; `prompts` has one entry per image."""
        texts = [prompt.text for prompt in prompts]
        metadata = [dict(prompt.metadata) for prompt in prompts]
        array = images.numpy()
        return Job(rows, array, texts, metadata, self._spawn(array, texts, metadata))

    def collect(
        self,
        jobs: Sequence[Job],
        hold: Callable[[list[str]], Callable[[], None]] | None = None,
    ) -> Scores:
        """Waits for the scores of `jobs`, in their order.

        When a reward is down altogether, calls `hold` with the names (the run saves itself there;
        what it returns is called every few seconds and may raise to leave), waits until all rewards
        are ready again and scores once more. Raises OutageError after `scoring.outage_wait_s`.
        """
        started = time.perf_counter()
        scores = join_scores([job.result.result() for job in jobs])
        while down := scores.unreachable():
            still_wanted = hold(down) if hold is not None else None
            self.wait_ready(self._config.outage_wait_s, still_wanted)
            for job in jobs:
                job.result = self._spawn(job.images, job.prompts, job.metadata)
            scores = join_scores([job.result.result() for job in jobs])
        scores.wait_s = time.perf_counter() - started
        return scores

    def wait_ready(self, timeout_s: float, check: Callable[[], None] | None = None) -> None:
        """Blocks until every reward says it is ready; calls `check` every few seconds meanwhile.
        Raises OutageError after `timeout_s`, AuthenticationFailed at once."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                return self._run(self._suite.wait_ready(min(left, CHECK_S)))
            except (Unavailable, Overloaded, DeadlineExceeded) as error:
                if left <= CHECK_S:
                    raise OutageError(
                        f"rewards are not ready after {timeout_s:.0f} s: {error}. Start the service; "
                        "a run that had begun is saved and continues with --resume"
                    ) from error
            if check is not None:
                check()

    def metadata(self) -> dict[str, Any]:
        """RewardMetadata of every reward."""
        return self._run(self._suite.metadata())

    def close(self) -> None:
        for client in self._clients.values():
            self._run(client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _spawn(
        self, images: np.ndarray, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> Future[SuiteScores]:
        result = asyncio.run_coroutine_threadsafe(
            self._suite.score(images, prompts, metadata), self._loop
        )
        self.traffic.track(result, images.nbytes * len(self._clients))
        return result

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def join_scores(parts: Sequence[Scores | SuiteScores]) -> Scores:
    """One after the other; the waits add up."""
    return Scores(
        values=np.concatenate([part.values for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
        rewards={
            name: _join_batches([part.rewards[name] for part in parts]) for name in parts[0].rewards
        },
        wait_s=sum(part.wait_s for part in parts if isinstance(part, Scores)),
    )


def _join_batches(batches: Sequence[ScoreBatch]) -> ScoreBatch:
    """One reward's micro-batches as one batch, in order."""
    joined = ScoreBatch.empty(sum(map(len, batches)))
    start = 0
    for batch in batches:
        rows = slice(start, start + len(batch))
        joined.values[rows], joined.valid[rows] = batch.values, batch.valid
        joined.errors.update({start + index: error for index, error in batch.errors.items()})
        for name, values in batch.scores.items():
            joined.scores.setdefault(name, np.full(len(joined), np.nan))[rows] = values
        joined.revisions |= batch.revisions
        start = rows.stop
    return joined


def _token(name: str, reward: Reward) -> str | None:
    if reward.token_env is None:
        return None
    if reward.token_env not in os.environ:
        raise ConfigError(f"rewards.{name}.token_env = {reward.token_env!r}: set that variable")
    return os.environ[reward.token_env]
