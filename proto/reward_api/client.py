"""AsyncRewardClient: scores a batch of images with one reward, however many calls that takes.

sync.py wraps it for code without an event loop; suite.py combines several rewards.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from reward_api.batch import OnError, ScoreBatch, check_on_error
from reward_api.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InvalidRequest,
    ItemFailure,
    Reason,
    RewardError,
)
from reward_api.items import make_items
from reward_api.pool import Pool
from reward_api.transport.base import Credentials, Transport, parse_url
from reward_api.wire.images import EncodedImages, Encoding, Subsampling, compress, encode_images
from reward_api.wire.messages import (
    GradientRequest,
    Item,
    RewardMetadata,
    ScoreRequest,
    ScoreResponse,
)

_MAX_READY_PAUSE_S = 1.0
# A call of fewer items is not worth its overhead when spreading a batch over replicas.
_MIN_SPREAD = 4

logger = logging.getLogger(__name__)


class ImageFormat(NamedTuple):
    """How a client sends raw pictures."""

    encoding: Encoding
    quality: int
    subsampling: Subsampling


@dataclass(eq=False)
class _Session:
    """What belongs to one process and one event loop."""

    pid: int
    loop: asyncio.AbstractEventLoop
    pool: Pool
    calls: asyncio.Semaphore


@dataclass
class _Job:
    """One `score` under way."""

    request_id: str
    items: list[Item]
    images: EncodedImages
    priority: int
    include_details: bool
    deadline: float
    batch: ScoreBatch
    on_error: OnError
    gradient: bool

    def request(self, indices: Sequence[int], model: str, *, is_retry: bool) -> ScoreRequest:
        """With an id of its own: a call's retries and hedges are this object sent again, while
        items that are asked once more are another call."""
        packed, images = self.images.select(indices)
        items = [self.items[i] for i in indices]
        if packed is None:
            items = [
                item.model_copy(update={"image": image})
                for item, image in zip(items, images, strict=True)
            ]
        kind = GradientRequest if self.gradient else ScoreRequest
        return kind(
            model=model,
            request_id=f"{self.request_id}-{indices[0]}x{len(indices)}{'r' if is_retry else ''}",
            items=items,
            packed_images=packed,
            priority=self.priority,
            include_details=self.include_details,
        )


class AsyncRewardClient:
    """A client of one reward.

    ``urls``                  one URL or several replicas (forms: transports.py).
    ``transport``             instead of URLs: anything with the methods of `Transport`, such as
                              `reward_api.testing.FakeReward`.
    ``token``                 bearer token; ``ca_file``, ``cert_file``, ``key_file``: PEM for TLS.
    ``model``                 the reward's name; the service refuses the call if it is another one.
    ``timeout_s``             for one `score`, retries included; ``attempt_timeout_s`` for each
                              single attempt.
    ``chunk_bytes``,          a batch is sent as concurrent calls of at most this size, at most
    ``chunk_items``,          ``max_calls`` at a time.
    ``max_calls``
    ``on_error``              what to do about items without a score: see `batch.OnError`.
    ``encoding``              "raw" (default), "png" or "jpeg" with ``quality`` and
                              ``subsampling``: see `images.encode_images`.

    It may be shared by event loops and survives a fork: connections belong to the loop and the
    process that use them. (Over gRPC a forked child gets a RuntimeError: gRPC's own limit.)
    """

    def __init__(
        self,
        urls: str | Sequence[str] = (),
        *,
        transport: Transport | None = None,
        token: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        model: str = "",
        timeout_s: float = 120.0,
        attempt_timeout_s: float = 60.0,
        chunk_bytes: int = 8 * 2**20,
        chunk_items: int = 64,
        max_calls: int = 16,
        on_error: OnError = "raise",
        encoding: Encoding = "raw",
        quality: int = 75,
        subsampling: Subsampling = "4:2:0",
    ) -> None:
        check_on_error(on_error)
        urls = [urls] if isinstance(urls, str) else list(urls)
        if bool(urls) == (transport is not None):
            raise ValueError("give the URLs of the reward's replicas, or a transport")
        self._targets = [parse_url(url) for url in urls]
        self._transports = [] if transport is None else [transport]
        self._credentials = Credentials(token, ca_file, cert_file, key_file)
        self._model = model
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._chunk_bytes = chunk_bytes
        self._chunk_items = chunk_items
        self._max_calls = max_calls
        self._on_error: OnError = on_error
        self.image_format = ImageFormat(encoding, quality, subsampling)
        self._sessions: list[_Session] = []
        self._inherited: list[_Session] = []

    async def score(
        self,
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        ids: Sequence[str] | None = None,
        include_details: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
        on_error: OnError | None = None,
        gradient: bool = False,
        request_id: str | None = None,
    ) -> ScoreBatch:
        """Scores N images. Buffers given as uint8 must not change until it returns. With `gradient`,
        `ScoreBatch.gradients` holds the score's gradient with respect to each image's pixels; rewards
        without one (`RewardMetadata.has_gradient`) answer UNSUPPORTED.

        ``images`` is whatever `encode_images` takes, or its result; ``priority`` goes from 1
        (first) to 3 (last). ``timeout_s`` and ``on_error`` replace the client's for this call.
        ``request_id`` (default: a new one) is of those very items: a service that has answered it
        lately gives the same answer again, also to another process.

        Raises InvalidRequest and AuthenticationFailed for the caller's mistakes, and with
        on_error="raise" also ItemsFailed, or the RewardError that ended a call.
        """
        started = time.monotonic()
        on_error = self._on_error if on_error is None else on_error
        check_on_error(on_error)
        encoded = await self.encode(images)
        items = make_items(len(encoded), prompts, metadata, ids)
        session = await self._session()
        job = _Job(
            request_id=request_id or uuid.uuid4().hex[:16],
            items=items,
            images=encoded,
            priority=priority,
            include_details=include_details,
            deadline=session.loop.time() + (self._timeout_s if timeout_s is None else timeout_s),
            batch=ScoreBatch.empty(len(items)),
            on_error=on_error,
            gradient=gradient,
        )
        job.batch.errors.update(encoded.failures)
        await gather(self._score_chunk(session, job, c) for c in self._chunks(session, encoded))
        job.batch.wall_s = time.monotonic() - started
        return job.batch.settle(on_error)

    async def score_gradient(
        self, images: Any, prompts: Sequence[str], *arguments: Any, **options: Any
    ) -> ScoreBatch:
        """`score` with the gradients: its arguments, options and errors."""
        return await self.score(images, prompts, *arguments, gradient=True, **options)

    async def encode(self, images: Any) -> EncodedImages:
        """The images as this client sends them; `score` takes the result. Raises InvalidRequest."""
        # Rounded in the caller's thread: a tensor's device stream belongs to it.
        encoded = images if isinstance(images, EncodedImages) else encode_images(images)
        if self.image_format.encoding == "raw":
            return encoded
        return await asyncio.to_thread(compress, encoded, **self.image_format._asdict())

    async def metadata(self, *, timeout_s: float = 10.0) -> RewardMetadata:
        """What the reward measures, its ranges, revision and limits. Raises RewardError."""
        session = await self._session()
        return await session.pool.metadata(deadline=session.loop.time() + timeout_s)

    async def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Returns when a replica takes work. Raises Unavailable with the last reason when none does
        in time, AuthenticationFailed at once."""
        session = await self._session()
        deadline = session.loop.time() + timeout_s
        pause_s = 0.05
        while True:
            try:
                return await session.pool.ready(deadline=deadline)
            except RewardError as error:
                left_s = deadline - session.loop.time()
                if not error.retryable or left_s <= pause_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_READY_PAUSE_S)

    async def close(self) -> None:
        """Closes the connections of this event loop; the client may be used again."""
        loop = asyncio.get_running_loop()
        own = [s for s in self._sessions if s.loop is loop or s.loop.is_closed()]
        self._sessions = [s for s in self._sessions if s not in own]
        for session in own:
            await session.pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _session(self) -> _Session:
        loop, pid = asyncio.get_running_loop(), os.getpid()
        for session in self._sessions:
            if session.loop is loop and session.pid == pid:
                return session
        # Connections inherited by a fork are the parent's: they are neither used nor closed here.
        self._inherited += [s for s in self._sessions if s.pid != pid]
        stale = [s for s in self._sessions if s.pid == pid and s.loop.is_closed()]
        self._sessions = [s for s in self._sessions if s.pid == pid and s not in stale]
        pool = Pool(
            self._targets,
            self._credentials,
            attempt_timeout_s=self._attempt_timeout_s,
            transports=self._transports,
        )
        session = _Session(pid, loop, pool, asyncio.Semaphore(self._max_calls))
        self._sessions.append(session)
        for old in stale:
            await old.pool.close()
        return session

    def _chunks(self, session: _Session, images: EncodedImages) -> list[list[int]]:
        """Indices of each call: in order, of at most `chunk_bytes`, spread over the replicas."""
        spread = max(_MIN_SPREAD, -(-len(images) // session.pool.num_replicas))
        max_items = min(self._chunk_items, spread)
        chunks: list[list[int]] = []
        size = 0
        for i in range(len(images)):
            if i in images.failures:
                continue
            num_bytes = images.num_bytes(i)
            if not chunks or len(chunks[-1]) == max_items or size + num_bytes > self._chunk_bytes:
                chunks.append([])
                size = 0
            chunks[-1].append(i)
            size += num_bytes
        return chunks

    async def _score_chunk(
        self, session: _Session, job: _Job, indices: Sequence[int], *, is_retry: bool = False
    ) -> None:
        """Scores some items into the batch; items with a retryable error once more."""
        try:
            response = await self._call(session, job, indices, is_retry=is_retry)
        except RewardError as error:
            if error.reason is Reason.REQUEST_TOO_LARGE and len(indices) > 1:
                half = len(indices) // 2
                parts = (indices[:half], indices[half:])
                await gather(
                    self._score_chunk(session, job, part, is_retry=is_retry) for part in parts
                )
            elif is_retry:
                logger.warning("%s; %d items keep their errors", error, len(indices))
            elif job.on_error == "raise" or _is_callers_fault(error):
                raise
            else:
                for i in indices:
                    job.batch.put(i, ItemFailure(error.reason, error.message))
            return
        again = _record(job.batch, indices, response)
        if again and not is_retry:
            await self._score_chunk(session, job, again, is_retry=True)

    async def _call(
        self, session: _Session, job: _Job, indices: Sequence[int], *, is_retry: bool
    ) -> ScoreResponse:
        request = job.request(indices, self._model, is_retry=is_retry)
        try:
            async with asyncio.timeout_at(job.deadline):
                await session.calls.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                Reason.DEADLINE, f"{self._max_calls} earlier calls took all the time there was"
            ) from None
        try:
            return await session.pool.score(request, deadline=job.deadline)
        finally:
            session.calls.release()


def _record(batch: ScoreBatch, indices: Sequence[int], response: ScoreResponse) -> list[int]:
    """Puts a response into the batch; returns the items that are worth another attempt."""
    again = []
    for i, result in zip(indices, response.results, strict=True):
        if result.score is not None and not result.score.is_finite:
            failure = ItemFailure(
                Reason.NON_FINITE_SCORE, "the service sent a score that is not finite"
            )
            batch.put(i, failure)
            continue
        batch.put(i, result)
        if result.error is not None and result.error.retryable:
            again.append(i)
    batch.note_timing(response.timing)
    batch.model = response.model or batch.model
    batch.versions |= {response.version} - {""}
    batch.revisions |= {response.revision} - {""}
    return again


def _is_callers_fault(error: RewardError) -> bool:
    """A 422 is about items; the rest of InvalidRequest is about how the service is called."""
    if isinstance(error, InvalidRequest):
        return error.http_status != 422
    return isinstance(error, AuthenticationFailed)


async def gather(awaitables: Iterable[Awaitable[None]]) -> None:
    """Runs all at once; the first failure cancels the others and is raised when they have ended."""
    awaitables = list(awaitables)
    if len(awaitables) == 1:
        return await awaitables[0]
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
