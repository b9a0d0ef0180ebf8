"""One batcher for all callers and both protocols: requests go in item by item, the device thread
takes batches out, and every item gets exactly one outcome.

Tickets live on the event loop; only ItemQueue and the device thread cross threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from reward_api.errors import ItemFailure, Overloaded, Reason, Unavailable
from reward_services.chassis.batching.isolation import (
    DeviceLost,
    Outcome,
    check_device,
    score_isolated,
)
from reward_services.chassis.batching.item_queue import Entry, ItemQueue
from reward_services.chassis.metrics import Metrics
from reward_services.chassis.scorer import Sample, Scorer
from reward_services.chassis.settings import ServiceSettings

logger = logging.getLogger(__name__)

_EWMA_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What a batch cost; times in seconds, `started` on the monotonic clock."""

    size: int
    started: float
    seconds: float


class Ticket:
    """One request's place in the batcher: collects the outcomes of its items, in their order."""

    def __init__(self, batcher: Batcher, num_items: int, priority: int) -> None:
        self._batcher = batcher
        self._priority = priority
        self._queued: list[Entry[Ticket]] = []
        self._remaining = num_items
        self._outcomes: list[Outcome | None] = [None] * num_items
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue_s = 0.0
        """The longest wait of one of its items, seconds."""
        self.batches: list[BatchRun] = []
        """The batches that held its items."""

    @property
    def is_open(self) -> bool:
        return not self._done.done()

    def submit(self, index: int, prepared: Sequence[Sample | ItemFailure]) -> None:
        """Queues the prepared items from `index` on; those that failed have their outcome."""
        entries = []
        for i, sample in enumerate(prepared, index):
            if isinstance(sample, ItemFailure):
                self.resolve(i, sample)
            else:
                entries.append(Entry(self, i, sample, self._batcher.key_of(sample)))
        if entries and self.is_open:
            self._queued += entries
            self._batcher.queue.put(entries, self._priority)

    def resolve(self, index: int, outcome: Outcome) -> None:
        assert self._outcomes[index] is None, "an item gets exactly one outcome"
        self._outcomes[index] = outcome
        self._remaining -= 1
        if not self._remaining and self.is_open:
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        if self.is_open:
            self._done.set_exception(error)

    async def outcomes(self) -> list[Outcome]:
        """Waits for all items. Raises what the whole request failed with (Unavailable)."""
        await self._done
        return [outcome for outcome in self._outcomes if outcome is not None]

    def close(self) -> int:
        """Takes what is still queued out of the queue; returns the number of items that got no
        outcome. Outcomes of a batch that is running are dropped when they come."""
        self._batcher.tickets.discard(self)
        if self._remaining:
            self._batcher.queue.discard(self._queued, self._priority)
        if not self._done.cancel() and not self._done.cancelled():
            self._done.exception()  # heard, even if nobody waited for it
        self._queued = []
        return self._remaining


class Batcher:
    """Owns the device thread: loads the scorer on it, warms up, scores batches.

    `on_device_lost` is called on the event loop, once, when the device or its thread is gone.
    """

    def __init__(
        self,
        scorer: Scorer,
        settings: ServiceSettings,
        metrics: Metrics,
        on_device_lost: Callable[[BaseException], None],
    ) -> None:
        self._scorer = scorer
        self._metrics = metrics
        self._on_device_lost = on_device_lost
        self._max_items = settings.max_batch_items
        self._cap = self._max_items
        self._cap_until = 0.0
        self._oom_cap_s = settings.oom_cap_s
        self._batch_s: float | None = None
        self._running_since: list[float | None] = [None] * scorer.parallel_batches
        self._lost: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self.tickets: set[Ticket] = set()
        self.device = "cpu"
        """What the scorer was loaded on."""
        self.queue: ItemQueue[Ticket] = ItemQueue(
            max_pixels=settings.max_batch_pixels,
            max_delay_s=settings.max_queue_delay_ms / 1000,
            aging_s=settings.priority_aging_s,
        )

    def key_of(self, sample: Sample) -> Hashable:
        """Equal for samples that may share a batch."""
        return sample.wants_gradient, self._scorer.batch_key(sample)

    def start(self, load: Callable[[], None]) -> asyncio.Future[None]:
        """Runs `load` on the device thread, then scores batches; the future tells how it ended."""
        loaded = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._device_thread, args=(load, loaded), name="device", daemon=True
        )
        self._thread.start()
        return loaded

    def stop(self) -> None:
        self.queue.close()

    def open(self, num_items: int, priority: int) -> Ticket:
        """Raises Unavailable when the device is lost."""
        if self._lost is not None:
            raise _device_failed()
        ticket = Ticket(self, num_items, priority)
        self.tickets.add(ticket)
        return ticket

    def check_deadline(self, priority: int, remaining_s: float) -> None:
        """Raises Overloaded when items of this priority would only wait until their deadline."""
        wait_s = self.estimated_wait_s(priority)
        if wait_s > max(0.0, remaining_s):
            raise Overloaded(
                Reason.DEADLINE_UNREACHABLE,
                f"the queue is about {wait_s:.1f} s long, the deadline {remaining_s:.1f} s away: "
                "try another replica or allow more time",
                retry_after_s=wait_s,
            )

    def estimated_wait_s(self, priority: int) -> float:
        """Seconds until a newcomer's batch starts, by the average of past ones; 0 if unknown."""
        if self._batch_s is None:
            return 0.0
        running = [since for since in self._running_since if since is not None]
        threads = len(self._running_since)
        wait_s = self.queue.ahead_of(priority) // (self._batch_limit() * threads) * self._batch_s
        if len(running) == threads:
            wait_s += max(0.0, min(running) + self._batch_s - time.monotonic())
        return wait_s

    def _batch_limit(self) -> int:
        if self._cap < self._max_items and time.monotonic() > self._cap_until:
            logger.info("batches of up to %d again", self._max_items)
            self._cap = self._max_items
        return self._cap

    def _lower_cap(self, failed_size: int) -> None:
        self._cap = max(1, min(self._cap, failed_size // 2))
        self._cap_until = time.monotonic() + self._oom_cap_s
        self._metrics.out_of_memory.inc()
        logger.warning(
            "out of memory with %d items; batches of at most %d for %.0f s",
            failed_size,
            self._cap,
            self._oom_cap_s,
        )

    # On the device thread, or each of several.

    def _device_thread(self, load: Callable[[], None], loaded: asyncio.Future[None]) -> None:
        try:
            load()
        except BaseException as error:
            self._post(_set_exception, loaded, error)
            return
        self._post(_set_result, loaded)
        for number in range(1, len(self._running_since)):
            threading.Thread(
                target=self._score_batches, args=(number,), name=f"device-{number}", daemon=True
            ).start()
        self._score_batches(0)

    def _score_batches(self, number: int) -> None:
        try:
            while (batch := self.queue.take(self._batch_limit())) is not None:
                self._run(batch, number)
        except BaseException as error:  # the thread ends: every caller must hear of it
            self._post(self._device_lost, error)

    def _run(self, batch: list[Entry[Ticket]], number: int) -> None:
        started = time.monotonic()
        self._running_since[number] = started
        samples = [entry.sample for entry in batch]
        score = self._scorer.score_gradient if samples[0].wants_gradient else self._scorer.score
        outcomes = score_isolated(
            score, samples, self._lower_cap, lambda: check_device(self.device)
        )
        self._running_since[number] = None
        run = BatchRun(len(batch), started, time.monotonic() - started)
        self._post(self._deliver, batch, outcomes, run)

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        # A closed loop means that the service is gone, and nobody waits for this any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    # On the event loop.

    def _deliver(self, batch: list[Entry[Ticket]], outcomes: list[Outcome], run: BatchRun) -> None:
        previous = self._batch_s
        self._batch_s = (
            run.seconds if previous is None else previous + _EWMA_WEIGHT * (run.seconds - previous)
        )
        self._metrics.observe_batch(run.size, run.seconds)
        waited: dict[Ticket, float] = {}
        for entry, outcome in zip(batch, outcomes, strict=True):
            ticket = entry.ticket
            waited[ticket] = max(waited.get(ticket, 0.0), run.started - entry.queued_at)
            ticket.resolve(entry.index, outcome)
        for ticket, wait_s in waited.items():
            ticket.queue_s = max(ticket.queue_s, wait_s)
            ticket.batches.append(run)

    def _device_lost(self, error: BaseException) -> None:
        if not isinstance(error, DeviceLost):
            logger.error("the device thread died", exc_info=error)
        self._lost = error
        for ticket in list(self.tickets):
            ticket.fail(_device_failed())
        self._on_device_lost(error)


def _device_failed() -> Unavailable:
    return Unavailable(
        Reason.DEVICE_FAILED, "the device is lost; this replica restarts, use another one"
    )


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _set_exception(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
