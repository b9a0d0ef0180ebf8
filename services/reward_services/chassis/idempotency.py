"""Calls that carry an idempotency key: a retry or a hedge gets the answer that exists, or joins the call
that is under way, so that the same work is not done twice.

Bounded in number and in time. What is kept is a whole answer: not a cancelled call, not an error of the
call as a whole, and no answer with an item for which another attempt can help.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.messages import ScoreRequest, ScoreResponse

KEY_HEADER = "Idempotency-Key"
MAX_ITEMS = 16_384
"""Most results kept, over all answers."""
KEEP_S = 300.0
_SAMPLE = 2048

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

Work = Callable[[], Coroutine[Any, Any, ScoreResponse]]


@dataclass(eq=False)
class _Entry:
    digest: int
    task: asyncio.Task[ScoreResponse]
    num_items: int
    waiting: int = 0
    kept_since: float = 0.0


class Answers:
    """Of one service, in one event loop."""

    def __init__(self, *, max_items: int = MAX_ITEMS, keep_s: float = KEEP_S) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._max_items = max_items
        self._keep_s = keep_s
        self._num_items = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def once(self, key: str, request: ScoreRequest, work: Work) -> ScoreResponse:
        """The answer of the call with this key: what it was, what it is about to be, or `work()`.

        The work goes on while anybody waits for it, and is cancelled with the last one. Raises
        InvalidRequest (KEY_REUSED) when the key came with another body, and what `work` raises.
        """
        if not _KEY.fullmatch(key):
            raise InvalidRequest(
                Reason.INVALID_REQUEST,
                f"{KEY_HEADER} must be 1 to 255 printable ASCII characters without spaces",
            )
        self._forget_old()
        digest = _digest(request)
        entry = self._entries.get(key)
        if entry is None:
            entry = _Entry(digest, asyncio.create_task(work()), len(request.items))
            self._entries[key] = entry
            entry.task.add_done_callback(lambda _: self._settle(key, entry))
        elif entry.digest != digest:
            raise InvalidRequest(
                Reason.KEY_REUSED,
                f"{KEY_HEADER} {key[:64]!r} came with another body before: every call needs its own",
            )
        return await self._wait(key, entry)

    async def _wait(self, key: str, entry: _Entry) -> ScoreResponse:
        entry.waiting += 1
        try:
            return await asyncio.shield(entry.task)
        finally:
            entry.waiting -= 1
            if not entry.waiting and not entry.task.done():
                self._drop(key, entry)  # before a retry can join what is being cancelled
                entry.task.cancel()

    def _settle(self, key: str, entry: _Entry) -> None:
        """Keeps a whole answer, forgets everything else."""
        has_failed = entry.task.cancelled() or entry.task.exception() is not None
        if self._entries.get(key) is not entry:
            return
        if has_failed:
            self._drop(key, entry)
            return
        results = entry.task.result().results
        if any(result.error is not None and result.error.retryable for result in results):
            self._drop(key, entry)
            return
        entry.kept_since = time.monotonic()
        self._entries.move_to_end(key)
        self._num_items += entry.num_items
        while self._num_items > self._max_items and (oldest := self._oldest_kept()):
            self._drop(*oldest)

    def _oldest_kept(self) -> tuple[str, _Entry] | None:
        return next(((k, e) for k, e in self._entries.items() if e.kept_since), None)

    def _forget_old(self) -> None:
        limit = time.monotonic() - self._keep_s
        while (oldest := self._oldest_kept()) and oldest[1].kept_since < limit:
            self._drop(*oldest)

    def _drop(self, key: str, entry: _Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
            if entry.kept_since:
                self._num_items -= entry.num_items


def _digest(request: ScoreRequest) -> int:
    """Of all that decides the answer. Of large images a sample: what it has to notice is a key that was
    used again by mistake, and to read every pixel would double what a call costs."""
    parts: list[Any] = [request.include_details, request.model]
    for item in request.items:
        parts += [item.id, item.prompt, repr(item.metadata)]
        image = item.image
        if image is not None:
            parts += [*_content(image.data, _SAMPLE), image.height, image.width, image.channels]
    packed = request.packed_images
    if packed is not None:
        parts += [*_content(packed.data, 4 * _SAMPLE), packed.count, packed.height, packed.width]
        parts.append(packed.channels)
    return hash(tuple(parts))


def _content(data: Any, sample: int) -> tuple[int, int]:
    """The length, and the CRC-32 of about `sample` bytes, spread evenly over all channels."""
    if len(data) <= 2 * sample:
        return len(data), zlib.crc32(data)
    stride = len(data) // sample | 1
    stride += 2 * (stride % 3 == 0)
    return len(data), zlib.crc32(np.frombuffer(data, np.uint8)[::stride].tobytes())
