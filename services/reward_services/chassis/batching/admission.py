"""What the service has accepted and still holds, in items and bytes; beyond the bounds callers are
told to come back instead of being queued without end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reward_api.errors import InvalidRequest, Overloaded, Reason

_MIN_RETRY_S = 0.05
_DECODED_RETRY_S = 1.0


class Admission:
    """Counts on the event loop. `retry_after_s` estimates when there is room again."""

    def __init__(
        self, *, max_items: int, max_bytes: int, retry_after_s: Callable[[], float]
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self.items = 0
        self.bytes = 0

    @contextmanager
    def hold_items(self, count: int) -> Iterator[None]:
        """Raises Overloaded. A request larger than the whole bound is taken when nothing else is
        held, so that it cannot be refused for ever."""
        if self.items and self.items + count > self._max_items:
            raise self._overloaded(f"{self.items} of {self._max_items} items")
        self.items += count
        try:
            yield
        finally:
            self.items -= count

    @contextmanager
    def hold_bytes(self, count: int) -> Iterator[None]:
        """Like hold_items, for the bytes of a request body, before it is read where its length is
        known."""
        if self.bytes and self.bytes + count > self._max_bytes:
            raise self._overloaded(f"{self.bytes} of {self._max_bytes} bytes")
        self.bytes += count
        try:
            yield
        finally:
            self.bytes -= count

    def _overloaded(self, held: str) -> Overloaded:
        return Overloaded(
            Reason.QUEUE_FULL,
            f"the queue is full ({held}); try again later or use another replica",
            retry_after_s=max(_MIN_RETRY_S, self._retry_after_s()),
        )


class Decoded:
    """Bytes of pixels that files became and calls still hold: kilobytes of file may be megabytes of
    pixels. Counts in the threads that decode."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.bytes = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """What one call holds until the block ends: it is asked before each file is decoded. Raises
        InvalidRequest (REQUEST_TOO_LARGE) for a call that no moment has room for, else Overloaded."""
        own = 0
        is_open = True

        def hold(count: int) -> None:
            nonlocal own
            with self._lock:
                if not is_open:  # a thread that goes on after its call has failed
                    return
                if own + count > self._max_bytes:
                    raise InvalidRequest(
                        Reason.REQUEST_TOO_LARGE,
                        f"the images of the request take more than max_decoded_bytes "
                        f"({self._max_bytes}) once decoded: send fewer per request",
                    )
                if self.bytes + count > self._max_bytes:
                    raise Overloaded(
                        Reason.QUEUE_FULL,
                        f"decoded images take {self.bytes} of {self._max_bytes} bytes; try again "
                        "later or use another replica",
                        retry_after_s=_DECODED_RETRY_S,
                    )
                own += count
                self.bytes += count

        try:
            yield hold
        finally:
            with self._lock:
                is_open = False
                self.bytes -= own
