"""The queue between the event loop, which adds and removes items, and the device thread, which
takes batches. The device thread (of a scorer with parallel batches, each of several) waits on the queue
itself, never on a busy event loop."""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Generic, TypeVar

from reward_services.chassis.scorer import Sample

T = TypeVar("T")
"""Whoever waits for an item; the queue does not look at it."""

PRIORITIES = (1, 2, 3)
DEFAULT_PRIORITY = 2


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """One queued item."""

    ticket: T
    index: int
    sample: Sample
    key: Hashable
    """Only items with equal keys share a batch (Scorer.batch_key)."""
    queued_at: float = 0.0

    @property
    def pixels(self) -> int:
        return self.sample.image.shape[0] * self.sample.image.shape[1]


class ItemQueue(Generic[T]):
    """First come, first served within a priority; a lower priority gives way for `aging_s` seconds
    per level, after which its items go first, so that none starves.

    Work-conserving: `take` returns what there is as soon as there is anything, unless
    `max_delay_s` asks it to wait for more.
    """

    def __init__(self, *, max_pixels: int, max_delay_s: float, aging_s: float) -> None:
        self._max_pixels = max_pixels
        self._max_delay_s = max_delay_s
        self._aging_s = aging_s
        self._lanes: dict[int, OrderedDict[Entry[T], None]] = {p: OrderedDict() for p in PRIORITIES}
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def ahead_of(self, priority: int) -> int:
        """How many queued items a newcomer of this priority waits for, aging aside."""
        return sum(len(lane) for level, lane in self._lanes.items() if level <= priority)

    def put(self, entries: Iterable[Entry[T]], priority: int) -> None:
        now = time.monotonic()
        with self._changed:
            lane = self._lanes[priority]
            for entry in entries:
                entry.queued_at = now
                lane[entry] = None
            self._changed.notify_all()

    def discard(self, entries: Iterable[Entry[T]], priority: int) -> int:
        """Removes what is still queued of `entries`; returns how many that were."""
        with self._changed:
            lane = self._lanes[priority]
            present = [entry for entry in entries if entry in lane]
            for entry in present:
                del lane[entry]
        return len(present)

    def close(self) -> None:
        """Ends `take`; what is still queued stays there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, max_items: int) -> list[Entry[T]] | None:
        """Waits for items and returns the next batch; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                if len(self):
                    wait_s = self._remaining_delay(max_items)
                    if wait_s <= 0:
                        return self._next_batch(max_items)
                    self._changed.wait(wait_s)
                else:
                    self._changed.wait()
            return None

    def _remaining_delay(self, max_items: int) -> float:
        if self._max_delay_s <= 0 or len(self) >= max_items:
            return 0.0
        oldest = min(next(iter(lane)).queued_at for lane in self._lanes.values() if lane)
        return oldest + self._max_delay_s - time.monotonic()

    def _next_batch(self, max_items: int) -> list[Entry[T]]:
        batch: list[tuple[int, Entry[T]]] = []
        pixels = 0
        for priority, entry in self._in_order():
            if batch and entry.key != batch[0][1].key:
                continue
            pixels += entry.pixels
            if batch and self._max_pixels and pixels > self._max_pixels:
                break
            batch.append((priority, entry))
            if len(batch) == max_items:
                break
        for priority, entry in batch:
            del self._lanes[priority][entry]
        return [entry for _, entry in batch]

    def _in_order(self) -> Iterator[tuple[int, Entry[T]]]:
        lanes = [zip(repeat(p), lane) for p, lane in self._lanes.items() if lane]
        if len(lanes) == 1:
            return iter(lanes[0])
        return heapq.merge(*lanes, key=self._rank)

    def _rank(self, queued: tuple[int, Entry[T]]) -> float:
        priority, entry = queued
        return entry.queued_at + priority * self._aging_s
