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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from flow_trainer.errors import ConfigError, OutageError
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Reward, Scoring
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.scores import Scores, join_scores, pack, place, unpack
from flow_trainer.record.throughput import Traffic
from reward_api import (
    AsyncRewardClient,
    AsyncRewardSuite,
    DeadlineExceeded,
    Overloaded,
    RewardError,
    SuiteScores,
    Unavailable,
)

CHECK_S = 2.0
"""Seconds between looks at the caller while waiting for a service."""


@dataclass(slots=True)
class Job:
    """A micro-batch on its way to the rewards."""

    rows: range
    images: np.ndarray
    prompts: list[str]
    metadata: list[dict[str, Any]]
    sources: list[str]
    """One per image: which of the recipe's sources it is of."""
    results: dict[str, Future[SuiteScores]]
    """By source, of its images in their order."""
    gradient: bool = False
    """The scores come with their gradients."""

    @property
    def done(self) -> bool:
        return all(result.done() for result in self.results.values())

    @property
    def scores(self) -> Scores:
        """Of all images. Call once the results are there."""
        if len(self.results) == 1:
            return join_scores([result.result() for result in self.results.values()])
        return place(
            len(self.prompts),
            [
                ([i for i, source in enumerate(self.sources) if source == name], result.result())
                for name, result in self.results.items()
            ],
        )


class Scorer:
    """Rewards of a recipe behind one asynchronous queue. Use from one thread; close when done.

    In a world of several, every rank has one and sends its own images; `collect` and `wait_ready` are
    then called by all ranks together, and wait on their status group.
    """

    def __init__(
        self,
        rewards: dict[str, Reward],
        scoring: Scoring,
        world: World = ALONE,
        images_per_epoch: int = 0,
        sources: Mapping[str, Mapping[str, Reward]] | None = None,
    ) -> None:
        """`images_per_epoch`: by which samples' time is measured where the recipe does not say.
        `sources`: which rewards score the images of each source of prompts, with their weights there;
        None: all score all."""
        self._config = scoring
        self._world = world
        self.traffic = Traffic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scoring", daemon=True)
        self._thread.start()
        self.timeout_s = scoring.deadline_s(images_per_epoch)
        self._clients = {
            name: AsyncRewardClient(
                reward.url,
                token=reward_token(name, reward),
                timeout_s=self.timeout_s,
                attempt_timeout_s=scoring.attempt_timeout_s or self.timeout_s,
                encoding=scoring.encoding,
            )
            for name, reward in rewards.items()
        }
        self._all = self._suite(rewards)
        self._suites = {name: self._suite(own) for name, own in (sources or {"": rewards}).items()}

    def submit(
        self, rows: range, images: Tensor, prompts: Sequence[Prompt], *, gradient: bool = False
    ) -> Job:
        """Starts scoring images (b, H, W, 3) uint8; `prompts` has one entry per image. With `gradient`,
        scores come with their gradients."""
        texts = [prompt.text for prompt in prompts]
        metadata = [dict(prompt.metadata) for prompt in prompts]
        sources = [prompt.source if prompt.source in self._suites else "" for prompt in prompts]
        job = Job(rows, images.numpy(), texts, metadata, sources, {}, gradient)
        job.results = self._spawn(job)
        return job

    def collect(
        self,
        jobs: Sequence[Job],
        hold: Callable[[list[str]], Callable[[], None]] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Scores:
        """Waits for the scores of all ranks' `jobs`; they come in the order of their rows. Calls
        `check` every few seconds meanwhile; it may raise to leave.

        When a reward is down altogether, calls `hold` with the names (the run saves itself there;
        what it returns replaces `check`), waits until all rewards are ready again and scores once
        more. Raises OutageError after `scoring.outage_wait_s`.
        """
        started = time.perf_counter()
        scores = self._join(jobs, check)
        while down := scores.unreachable():
            check = hold(down) if hold is not None else check
            self.wait_ready(self._config.outage_wait_s, check)
            for job in jobs:
                job.results = self._spawn(job)
            scores = self._join(jobs, check)
        scores.wait_s = time.perf_counter() - started
        return scores

    def wait_ready(self, timeout_s: float, check: Callable[[], None] = lambda: None) -> None:
        """Blocks until every reward says it is ready; calls `check` every few seconds meanwhile.
        Raises OutageError after `timeout_s`, AuthenticationFailed at once."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            error = self._not_ready(min(left, CHECK_S))
            if not self._world.any(error is not None):
                return
            if self._world.any(left <= CHECK_S):
                raise OutageError(
                    f"rewards are not ready after {timeout_s:.0f} s: {error or 'says another rank'}. "
                    "Start the service; a run that had begun is saved and continues with --resume"
                ) from error
            check()

    def metadata(self) -> dict[str, Any]:
        """RewardMetadata of every reward."""
        return self._run(self._all.metadata())

    def close(self) -> None:
        self._run(_cancel_others())
        for client in self._clients.values():
            self._run(client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _not_ready(self, timeout_s: float) -> RewardError | None:
        try:
            return self._run(self._all.wait_ready(timeout_s))
        except (Unavailable, Overloaded, DeadlineExceeded) as error:
            return error

    def _join(self, jobs: Sequence[Job], check: Callable[[], None]) -> Scores:
        """Scores of all ranks' jobs. No rank waits in a collective for longer than CHECK_S, or it
        would not see a signal, nor the others that it has seen one."""
        futures = [result for job in jobs for result in job.results.values()]
        while self._world.any(bool(wait(futures, CHECK_S).not_done)):
            check()
        mine = [(job.rows.start, job.scores) for job in jobs]
        if self._world.size == 1:
            return join_scores([scores for _, scores in mine])
        parts = self._world.exchange([(start, pack(scores)) for start, scores in mine])
        ordered = sorted(chain.from_iterable(parts), key=lambda part: part[0])
        return join_scores([unpack(part) for _, part in ordered])

    def _spawn(self, job: Job) -> dict[str, Future[SuiteScores]]:
        return {name: self._score(job, name) for name in dict.fromkeys(job.sources)}

    def _score(self, job: Job, source: str) -> Future[SuiteScores]:
        rows = [i for i, name in enumerate(job.sources) if name == source]
        images = job.images if len(rows) == len(job.sources) else job.images[rows]
        suite = self._suites[source]
        result = asyncio.run_coroutine_threadsafe(
            suite.score(
                images,
                [job.prompts[i] for i in rows],
                [job.metadata[i] for i in rows],
                gradient=job.gradient,
            ),
            self._loop,
        )
        self.traffic.track(result, images.nbytes * len(suite.weights))
        return result

    def _suite(self, rewards: Mapping[str, Reward]) -> AsyncRewardSuite:
        clients = {name: self._clients[name] for name in rewards}
        weights = {name: reward.weight for name, reward in rewards.items()}
        return AsyncRewardSuite(clients, weights, on_error="nan")

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _cancel_others() -> None:
    """Ends the calls that a stopped run leaves, so that none is destroyed while it waits."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def reward_token(name: str, reward: Reward) -> str | None:
    """Of the variable that the recipe names. Raises ConfigError where it is empty."""
    if reward.token_env is None:
        return None
    token = os.environ.get(reward.token_env)
    if not token:
        raise ConfigError(f"rewards.{name}.token_env = {reward.token_env!r}: set that variable")
    return token
