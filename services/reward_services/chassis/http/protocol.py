"""uvicorn's HTTP protocol, with a short way for large bodies: from the socket into their buffer.

By uvicorn's own way each byte of a body is copied five times (event loop, parser, two buffers, ours),
which costs more CPU than all the rest of a call with 6 MB of pixels. Here uvicorn does everything up
to the first piece of the body; from then on the bytes have no structure left to parse, only a length.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_SCOPE_KEY = "reward.connection"


def connection_of(scope: Scope) -> HttpProtocol | None:
    """None under another server than ours."""
    return scope.get(_SCOPE_KEY)


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _on_gone: Callable[[], object] | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Scope = self.scope  # pyright: ignore[reportAssignmentType]
        scope[_SCOPE_KEY] = self

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        # An answer to HEAD is a head alone: nothing would send it on its way.
        if self.cycle is not None and self.scope["method"] != "HEAD":
            self.cycle.transport = _HeadWithBody(self.cycle)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def is_gone(self) -> bool:
        """Whether the caller has left."""
        return self.transport.is_closing()

    @contextlib.contextmanager
    def watched(self, on_gone: Callable[[], object]) -> Iterator[None]:
        """Calls `on_gone` when the caller goes away meanwhile. For a call whose body has been read;
        costs no task, as waiting for ASGI's `receive` does."""
        self._on_gone = on_gone
        self.flow.resume_reading()  # else the end of the connection stays unread
        try:
            yield
        finally:
            self._on_gone = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # After a reset uvicorn leaves the timer running, which holds the connection's objects for as long.
        self._unset_keepalive_if_required()
        if self._on_gone is not None:
            self._on_gone()

    async def receive_into(self, view: memoryview) -> bool:
        """Fills the buffer with all that is left of the request's body; False when the caller went
        away. Only for a body of known length, of which some has been received and as much as fits
        the buffer has not."""
        rest = _Rest(self, view)
        self._switch(rest)
        try:
            await rest.done
        except asyncio.CancelledError:
            # The answer (an error) and the rest of the body are uvicorn's: it must know where it is.
            self._switch(self)
            if not self.transport.is_closing():
                self.data_received(bytes(view[: rest.size]))
            raise
        self._switch(self)
        if rest.size < len(view):
            return False
        if not self.transport.is_closing():
            # The old parser still waits for the bytes that it has not seen.
            self.parser = httptools.HttpRequestParser(self)
            self.on_message_complete()
        return True

    def _switch(self, protocol: asyncio.BaseProtocol) -> None:
        if self.transport.is_closing():
            return
        self.transport.set_protocol(protocol)
        self.flow.resume_reading()


class _Rest(asyncio.BufferedProtocol):
    """Receives the rest of a body; what else happens to the connection is passed on."""

    def __init__(self, http: HttpProtocol, view: memoryview) -> None:
        self._http = http
        self._view = view
        self.size = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self.size :]

    def buffer_updated(self, nbytes: int) -> None:
        self.size += nbytes
        if self.size == len(self._view):
            self._http.flow.pause_reading()
            self._finish()

    def eof_received(self) -> None:
        self._http.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)
        self._finish()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _HeadWithBody:
    """The transport as one answer sees it: the head waits for the first piece of the body. uvicorn
    writes them one by one, and each write is a system call that wakes the caller."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._head = b""
        self._is_head_written = False

    def write(self, data: bytes) -> None:
        if not self._is_head_written and self._cycle.response_started:  # not "100 Continue"
            self._head = data
            self._is_head_written = True
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def close(self) -> None:
        self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()
