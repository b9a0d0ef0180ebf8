"""RewardClient and RewardSuite for code without an event loop: thin wrappers of the asynchronous
ones, which run on a background thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Self, TypeVar

from reward_api.batch import ScoreBatch
from reward_api.client import AsyncRewardClient
from reward_api.suite import AsyncRewardSuite, SuiteScores
from reward_api.transport.base import Transport
from reward_api.wire.images import EncodedImages, encode_images
from reward_api.wire.messages import RewardMetadata

_Result = TypeVar("_Result")
_Scores = TypeVar("_Scores")
_About = TypeVar("_About")


class _LoopThread:
    """An event loop on a daemon thread, started on first use and anew after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # KeyboardInterrupt: the call at the service ends too
            raise

    def stop(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)

    @property
    def is_running(self) -> bool:
        return self._loop is not None and self._pid == os.getpid()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_run_loop, args=(self._loop,), name="reward-client", daemon=True
                ).start()
            return self._loop


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        # What is under way ends, and whoever waits for it learns that it was cancelled.
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.close()


class _Blocking(Generic[_Scores, _About]):
    """The methods of an asynchronous client or suite, blocking. It may be shared by threads."""

    def __init__(self, asynchronous: Any) -> None:
        self.asynchronous = asynchronous
        self._thread = _LoopThread()

    def score(
        self,
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        **options: Any,
    ) -> _Scores:
        """Scores N images: `score` of the asynchronous form, with its options and its errors."""
        work = self.asynchronous.score(_rounded(images), prompts, metadata, **options)
        return self._thread.run(work)

    def score_gradient(
        self,
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        **options: Any,
    ) -> _Scores:
        """`score`, with the scores' gradients with respect to the pixels."""
        return self.score(images, prompts, metadata, gradient=True, **options)

    def submit(
        self,
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        **options: Any,
    ) -> Future[_Scores]:
        """`score` that returns at once, for work that goes on meanwhile. Float images are rounded
        before it returns; uint8 buffers must stay unchanged until the result is there."""
        work = self.asynchronous.score(_rounded(images), prompts, metadata, **options)
        return self._thread.submit(work)

    def metadata(self, *, timeout_s: float = 10.0) -> _About:
        """What is measured, its ranges and revisions. Raises RewardError."""
        return self._thread.run(self.asynchronous.metadata(timeout_s=timeout_s))

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Returns when work is taken. Raises Unavailable when it is not in time."""
        self._thread.run(self.asynchronous.wait_ready(timeout_s))

    def close(self) -> None:
        """Closes connections and the background thread; both start again on the next use."""
        if self._thread.is_running:
            self._thread.run(self.asynchronous.close())
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RewardClient(_Blocking[ScoreBatch, RewardMetadata]):
    """AsyncRewardClient for synchronous code, with the same arguments."""

    def __init__(
        self, urls: str | Sequence[str] = (), *, transport: Transport | None = None, **options: Any
    ) -> None:
        super().__init__(AsyncRewardClient(urls, transport=transport, **options))


class RewardSuite(_Blocking[SuiteScores, dict[str, RewardMetadata]]):
    """AsyncRewardSuite for synchronous code, with the same arguments."""

    def __init__(
        self,
        rewards: Mapping[str, str | Sequence[str] | AsyncRewardClient | RewardClient],
        weights: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        rewards = {
            name: reward.asynchronous if isinstance(reward, RewardClient) else reward
            for name, reward in rewards.items()
        }
        super().__init__(AsyncRewardSuite(rewards, weights, **options))


def _rounded(images: Any) -> EncodedImages:
    """To uint8 in the caller's thread, where a tensor's device stream is the right one."""
    return images if isinstance(images, EncodedImages) else encode_images(images)
