"""The replicas of one reward: which one to call, when to try again, when to ask a second one.

- A call goes to the replica with the fewest items under way.
- A retryable failure is tried again, first on a replica that has not failed it yet, then after a
  pause with full jitter. A replica's own hint (Retry-After, pushback) holds for that replica.
  Retries without a hint wait for a budget: 10 % of the calls, beyond 2 a second. Errors of the
  caller are never retried; an internal error once. The deadline ends it all.
- Five failures in a row open a replica's breaker (resilience.py).
- With two replicas or more, a call that takes over twice the 95th percentile is sent to a second
  one as well (5 % of calls at most); the first answer wins. Scoring is idempotent.
- An attempt has a deadline of its own within that of the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from reward_api.errors import (
    DeadlineExceeded,
    Reason,
    RewardError,
    ServerFault,
    Unavailable,
)
from reward_api.resilience import Breaker, Budget, Latencies, backoff_s
from reward_api.transport.base import Credentials, Target, Transport
from reward_api.transport.open import open_transport
from reward_api.wire.messages import RewardMetadata, ScoreRequest, ScoreResponse

_RESOLVE_EVERY_S = 30.0
_LOOK_UP_PAUSE_S = 1.0
_PROBE_TIMEOUT_S = 10.0
_MIN_HINT_S = 0.02

_Answer = TypeVar("_Answer")

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Endpoint:
    """One replica and what is known about it."""

    name: str
    transport: Transport
    outstanding: int = 0
    """Items under way."""
    not_before: float = 0.0
    """The end of the pause that the replica asked for."""
    breaker: Breaker = field(default_factory=Breaker)
    last_error: RewardError | None = None

    @contextlib.contextmanager
    def busy(self, num_items: int) -> Iterator[None]:
        """While an attempt is under way."""
        self.outstanding += num_items
        is_probe = self.breaker.start()
        try:
            yield
        finally:
            self.outstanding -= num_items
            if is_probe:
                self.breaker.end_probe()

    def free_at(self, now: float) -> float:
        return max(self.not_before, self.breaker.free_at(now))


class Pool:
    """Belongs to one process and one event loop; client.py makes another one elsewhere."""

    def __init__(
        self,
        targets: Sequence[Target],
        credentials: Credentials,
        *,
        attempt_timeout_s: float,
        transports: Sequence[Transport] = (),
    ) -> None:
        self._names = [target for target in targets if target.resolve]
        self._credentials = credentials
        self._attempt_timeout_s = attempt_timeout_s
        self._retries = Budget(0.1, burst=10, per_s=2)
        self._hedges = Budget(0.05, burst=2)
        self._latencies = Latencies()
        self._resolve_at = 0.0
        self._resolving = asyncio.Lock()
        self._retired: list[Endpoint] = []
        fixed = [self._endpoint(target) for target in targets if not target.resolve]
        fixed += [Endpoint(type(transport).__name__, transport) for transport in transports]
        self._fixed = fixed
        self._resolved: dict[Target, Endpoint] = {}

    @property
    def num_replicas(self) -> int:
        return max(1, len(self._endpoints()))

    async def score(self, request: ScoreRequest, *, deadline: float) -> ScoreResponse:
        """`deadline` is in the event loop's time. Raises the RewardError of the last attempt."""
        self._retries.note_call()
        self._hedges.note_call()
        failed: set[Endpoint] = set()
        error: RewardError | None = None
        for attempt in itertools.count():
            endpoint = await self._choose(deadline, failed, error)
            try:
                return await self._attempt_hedged(endpoint, request, deadline)
            except RewardError as caught:
                error = caught
            if not _may_retry(error, attempt):
                raise error
            failed.add(endpoint)
            await self._pause(attempt, failed, deadline, error)
        raise AssertionError("unreachable")

    async def metadata(self, *, deadline: float) -> RewardMetadata:
        """Of the first replica that answers. Raises the last replica's RewardError."""
        return await self._ask(lambda e, t: e.transport.metadata(timeout_s=t), deadline)

    async def ready(self, *, deadline: float) -> None:
        """Returns when a replica takes work now; raises the RewardError of one that loads, or else of
        the last."""
        await self._ask(lambda e, t: e.transport.ready(timeout_s=t), deadline)

    async def close(self) -> None:
        for endpoint in [*self._endpoints(), *self._retired]:
            await endpoint.transport.close()

    # Which replica.

    def _endpoints(self) -> list[Endpoint]:
        return [*self._fixed, *self._resolved.values()]

    def _endpoint(self, target: Target) -> Endpoint:
        return Endpoint(str(target), open_transport(target, self._credentials))

    async def _choose(
        self, deadline: float, avoid: set[Endpoint], error: RewardError | None
    ) -> Endpoint:
        """The least busy free replica; waits for one when none is free. Raises `error`, or what
        occupies the replicas, when none will be free before the deadline."""
        while True:
            await self._resolve()
            now, endpoints = _now(), self._endpoints()
            if error is not None and now >= deadline:
                raise error
            free = self._free(now)
            if free:
                return _least_busy([e for e in free if e not in avoid] or free)
            wake = min((e.free_at(now) for e in endpoints), default=now + _LOOK_UP_PAUSE_S)
            cause = error or next((e.last_error for e in endpoints if e.last_error), None)
            await self._sleep(
                wake - now, deadline, cause or Unavailable(Reason.CONNECTION, "no replica is known")
            )

    def _free(self, now: float) -> list[Endpoint]:
        return [e for e in self._endpoints() if e.free_at(now) <= now]

    async def _resolve(self) -> None:
        """Looks the DNS names up, every 30 s; a failed look-up keeps what is known."""
        if not self._names or _now() < self._resolve_at:
            return
        async with self._resolving:
            if _now() < self._resolve_at:
                return
            found = [address for name in self._names for address in await _addresses(name)]
            self._resolve_at = _now() + (_RESOLVE_EVERY_S if found else _LOOK_UP_PAUSE_S)
            if found:
                await self._adopt(found)

    async def _adopt(self, found: Sequence[Target]) -> None:
        known = self._resolved
        self._resolved = {t: known.get(t) or self._endpoint(t) for t in found}
        self._retired += [e for t, e in known.items() if t not in self._resolved]
        idle = [e for e in self._retired if e.outstanding == 0]
        self._retired = [e for e in self._retired if e.outstanding]
        for endpoint in idle:
            await endpoint.transport.close()

    # One attempt, and a second beside it.

    async def _attempt_hedged(
        self, endpoint: Endpoint, request: ScoreRequest, deadline: float
    ) -> ScoreResponse:
        delay_s = self._latencies.hedge_delay_s() if len(self._endpoints()) > 1 else None
        if delay_s is None:
            with endpoint.busy(len(request.items)):
                return await self._attempt(endpoint, request, deadline)
        running = [self._start(endpoint, request, deadline)]
        try:
            done, _ = await asyncio.wait(running, timeout=delay_s)
            others = [e for e in self._free(_now()) if e is not endpoint]
            if not done and others and self._hedges.take(_now()) == 0:
                running.append(self._start(_least_busy(others), request, deadline))
            response = await _first_success(running)
            if not running[0].done():
                endpoint.breaker.failure(_now())
            return response
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _start(
        self, endpoint: Endpoint, request: ScoreRequest, deadline: float
    ) -> asyncio.Task[ScoreResponse]:
        """An attempt that counts as the endpoint's work from now on, before the task runs."""
        busy = contextlib.ExitStack()
        busy.enter_context(endpoint.busy(len(request.items)))
        task = asyncio.create_task(self._attempt(endpoint, request, deadline))
        task.add_done_callback(lambda _: busy.close())
        return task

    async def _attempt(
        self, endpoint: Endpoint, request: ScoreRequest, deadline: float
    ) -> ScoreResponse:
        started = _now()
        timeout_s = min(self._attempt_timeout_s, max(0.0, deadline - started))
        try:
            async with asyncio.timeout(timeout_s):
                response = await endpoint.transport.score(request, timeout_s=timeout_s)
            _verify(request, response, endpoint.name)
        except TimeoutError:
            # A caller in a hurry proves nothing against the replica.
            if timeout_s >= min(self._attempt_timeout_s, self._latencies.hedge_delay_s() or inf):
                endpoint.breaker.failure(_now())
            raise _too_late(endpoint, timeout_s) from None
        except RewardError as error:
            _note_failure(endpoint, error)
            raise
        endpoint.breaker.success()
        self._latencies.add(_now() - started)
        return response

    # When to try again.

    async def _pause(
        self, attempt: int, failed: set[Endpoint], deadline: float, error: RewardError
    ) -> None:
        """Before another attempt. A replica that says when to come back paces its callers by
        itself (`_choose` waits for it), and an open breaker does; other retries wait for the
        budget."""
        if error.retry_after_s is not None:
            failed.clear()
            return
        if attempt == 0 and _now() < deadline:
            logger.warning("%s; trying again", error)
        while (wait_s := self._retries.take(_now())) > 0:
            await self._sleep(wait_s, deadline, error)
        if failed.issuperset(self._endpoints()):
            failed.clear()
            await self._sleep(backoff_s(attempt), deadline, error)

    async def _sleep(self, seconds: float, deadline: float, error: RewardError) -> None:
        """Raises `error` at once when the deadline comes first."""
        if _now() + seconds >= deadline:
            raise error
        await asyncio.sleep(seconds)

    async def _ask(
        self, question: Callable[[Endpoint, float], Awaitable[_Answer]], deadline: float
    ) -> _Answer:
        await self._resolve()
        error: RewardError = Unavailable(Reason.CONNECTION, "no replica is known")
        for endpoint in sorted(self._endpoints(), key=lambda e: e.breaker.failures):
            timeout_s = min(_PROBE_TIMEOUT_S, deadline - _now())
            if timeout_s <= 0:
                break
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await question(endpoint, timeout_s)
            except TimeoutError:
                failure: RewardError = _too_late(endpoint, timeout_s)
            except RewardError as caught:
                failure = caught
            else:
                endpoint.breaker.success()
                return answer
            if error.reason is not Reason.LOADING:
                error = failure
        raise error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _too_late(endpoint: Endpoint, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        Reason.DEADLINE, f"{endpoint.name} did not answer within {timeout_s:.3g} s"
    )


def _note_failure(endpoint: Endpoint, error: RewardError) -> None:
    endpoint.last_error = error
    if isinstance(error, (Unavailable, ServerFault)):
        endpoint.breaker.failure(_now())
    elif not isinstance(error, DeadlineExceeded):
        endpoint.breaker.success()  # it answers
    hint_s = error.retry_after_s
    if hint_s is not None and hint_s < inf:
        # Later than asked, each call by another span, so that they do not come back as one.
        pause_s = max(hint_s, _MIN_HINT_S) * random.uniform(1.0, 1.25)
        endpoint.not_before = max(endpoint.not_before, _now() + pause_s)


def _may_retry(error: RewardError, attempt: int) -> bool:
    if error.retry_after_s == inf or (isinstance(error, ServerFault) and attempt > 0):
        return False
    return error.retryable


def _least_busy(endpoints: Sequence[Endpoint]) -> Endpoint:
    return min(endpoints, key=lambda e: (e.outstanding, e.breaker.failures, random.random()))


async def _first_success(running: Iterable[asyncio.Task[ScoreResponse]]) -> ScoreResponse:
    """The first response; the error only when all have failed, or when no retry can help it."""
    pending = set(running)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                return task.result()
            if not pending or not (isinstance(error, RewardError) and error.retryable):
                raise error


async def _addresses(target: Target) -> list[Target]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            target.host, target.port, type=socket.SOCK_STREAM
        )
    except OSError:
        return []
    return [target.at(str(address[0])) for *_, address in found]


def _verify(request: ScoreRequest, response: ScoreResponse, name: str) -> None:
    """Every item has its own result, in order. Raises ServerFault."""
    sent = [item.id for item in request.items]
    received = [result.id for result in response.results]
    if sent != received:
        raise ServerFault(
            Reason.INTERNAL,
            f"{name} answered {len(received)} results for {len(sent)} items, or in another order",
        )
