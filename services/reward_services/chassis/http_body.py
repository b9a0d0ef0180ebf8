"""Reading request bodies within bounds, and noticing callers that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive

from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_services.chassis.http_protocol import body_sink

_FIRST_BYTES = 64 * 1024


def integer_header(headers: Headers, name: str, *, minimum: int) -> int | None:
    """Raises InvalidRequest when the header is there and not an integer of at least `minimum`."""
    text = headers.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18 or int(text) < minimum:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"{name} must be an integer of at least {minimum}"
        )
    return int(text)


def expected_bytes(headers: Headers, limit: int) -> int:
    """The length that the caller announces, or the limit when it announces none. Raises
    InvalidRequest (REQUEST_TOO_LARGE) before a byte is read."""
    length = integer_header(headers, "content-length", minimum=0)
    if length is None:
        return limit
    if length > limit:
        raise _too_large(limit)
    return length


async def read_body(request: Request, limit: int) -> memoryview:
    """The body, at most `limit` bytes. Raises InvalidRequest (REQUEST_TOO_LARGE), RewardError
    (CANCELLED) when the caller goes away before its end."""
    is_length_known = "content-length" in request.headers
    body = _Body(expected_bytes(request.headers, limit) if is_length_known else 0, limit)
    # A known length cannot be exceeded: the parser ends the body there.
    sink = body_sink(request.scope) if is_length_known else None
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise client_gone()
            body.write(message.get("body", b""))
            if not message.get("more_body", False):
                return body.view()
            if sink is not None:
                sink.write = body.write
    finally:
        if sink is not None:
            sink.write = None


class _Body:
    def __init__(self, length: int, limit: int) -> None:
        self._buffer = np.empty(length, np.uint8)  # unlike bytearray, not filled with zeros first
        self._size = 0
        self._limit = limit

    def write(self, chunk: bytes) -> None:
        end = self._size + len(chunk)
        if end > self._limit:
            raise _too_large(self._limit)
        if end > len(self._buffer):  # no Content-Length: grow by doubling
            grown = np.empty(min(self._limit, max(2 * end, _FIRST_BYTES)), np.uint8)
            grown[: self._size] = self._buffer[: self._size]
            self._buffer = grown
        self._buffer.data[self._size : end] = chunk
        self._size = end

    def view(self) -> memoryview:
        return self._buffer.data[: self._size].toreadonly()


@contextlib.asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs inside when the caller goes away: raises RewardError (CANCELLED). The body
    must have been read."""
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Another's cancellation (shutdown) stays one.
        if is_gone and task.uncancel() == 0:
            raise client_gone() from None
        raise
    finally:
        watcher.cancel()


def client_gone() -> RewardError:
    return RewardError(Reason.CANCELLED, "the caller went away")


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(
        Reason.REQUEST_TOO_LARGE,
        f"the body is larger than max_request_bytes ({limit}); send fewer items per request",
    )
