"""Reading request bodies within bounds, and noticing callers that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import numpy as np
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_services.chassis.http.protocol import connection_of

# Below this, changing the way a body is received costs more than it saves.
_RECEIVE_INTO_BYTES = 128 * 1024


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
    headers = request.headers
    has_length = "content-length" in headers and "transfer-encoding" not in headers
    # Not a bytearray: there is no need to fill megabytes with zeros.
    view = np.empty(expected_bytes(headers, limit) if has_length else 0, np.uint8).data
    connection = connection_of(request.scope) if has_length else None
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise client_gone()
        chunk = message.get("body", b"")
        end = size + len(chunk)
        if end > limit:
            raise _too_large(limit)
        if end > len(view):  # no Content-Length: grow by doubling
            larger = np.empty(min(limit, max(2 * end, 65536)), np.uint8).data
            larger[:size] = view[:size]
            view = larger
        view[size:end] = chunk
        size = end
        if not message.get("more_body", False):
            return view[:size].toreadonly()
        if connection is not None and len(view) - size >= _RECEIVE_INTO_BYTES:
            if not await connection.receive_into(view[size:]):
                raise client_gone()
            return view.toreadonly()


@contextlib.contextmanager
def cancelled_on_disconnect(scope: Scope) -> Iterator[None]:
    """Cancels what runs inside when the caller goes away: raises RewardError (CANCELLED). The body
    must have been read. Under another server than ours nobody notices."""
    connection = connection_of(scope)
    if connection is None:
        yield
        return
    if connection.is_gone:
        raise client_gone()
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    def cancel() -> None:
        nonlocal is_gone
        is_gone = True
        task.cancel()

    try:
        with connection.watched(cancel):
            yield
    except asyncio.CancelledError:
        # Another's cancellation (shutdown) stays one.
        if is_gone and task.uncancel() == 0:
            raise client_gone() from None
        raise


def client_gone() -> RewardError:
    return RewardError(Reason.CANCELLED, "the caller went away")


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(
        Reason.REQUEST_TOO_LARGE,
        f"the body is larger than max_request_bytes ({limit}); send fewer items per request",
    )
