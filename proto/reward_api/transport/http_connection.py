"""HTTP/1.1 over asyncio sockets, for large bodies of several parts.

httptools reads the answers; the parts go from the caller's buffers to the socket without being
joined or copied, which takes a third of a general HTTP client's CPU for 6 MB of pixels. Plain sockets
rather than asyncio transports, so that nothing is tied to an event loop while a connection idles.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import httptools

_RECEIVE_BYTES = 64 * 1024
_HEAD_START_S = 0.25
_SEND_BYTES = 1024 * 1024
_JOIN_BYTES = 16 * 1024
"""Smaller pieces travel together."""
_SMALL_BYTES = 64 * 1024
"""Sent before the answer is awaited: it fits into the sockets' buffers."""
_HEAD_BYTES = 64 * 1024
"""More is no answer's headers."""


class Stream(Protocol):
    """A connected byte stream."""

    async def send(self, data: bytes | memoryview) -> None: ...

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""
        ...

    def is_usable(self) -> bool:
        """Whether an idle stream is still open at the other end, as far as can be seen."""
        ...

    def close(self) -> None: ...


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class Connection:
    """One HTTP/1.1 connection, one exchange at a time. Raises OSError when the connection fails or
    the answer is not HTTP."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_idle = True

    def is_idle(self) -> bool:
        """Whether the last exchange ended as it should, with nothing behind the answer: what is left
        would be taken for the next one."""
        return self._is_idle

    def is_usable(self) -> bool:
        """Whether an idle connection is still open at the other end, as far as can be seen."""
        return self._stream.is_usable()

    def close(self) -> None:
        self._stream.close()

    async def exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        parts: Sequence[bytes | memoryview] = (),
    ) -> Response:
        """Sends a request and reads its answer, which may come before all of the body is sent
        (a server that refuses it). `headers` must state the content-length of `parts`. Raises
        ValueError for a header that cannot be sent."""
        head = _request_head(method, target, headers)
        self._is_idle = False
        if sum(map(len, parts)) <= _SMALL_BYTES:
            is_sent = True
            try:
                await self._send(head, parts)
            except OSError:
                # A connection that breaks now may have brought an answer that explains it.
                is_sent = False
            answer = await self._receive()
        else:
            sending = asyncio.create_task(self._send(head, parts))
            try:
                answer = await self._receive()
            finally:
                is_sent = sending.done() and not sending.exception()
                if not is_sent:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        self._is_idle = is_sent and answer.keeps_alive
        return answer.response()

    async def _send(self, head: bytes, parts: Sequence[bytes | memoryview]) -> None:
        small: list[bytes | memoryview] = [head]
        for part in parts:
            if len(part) <= _JOIN_BYTES:
                small.append(part)
                continue
            await self._stream.send(b"".join(small))
            await self._stream.send(part)
            small = []
        if small:
            await self._stream.send(b"".join(small))

    async def _receive(self) -> _Answer:
        answer = _Answer()
        while not answer.is_complete:
            answer.feed(await self._stream.receive())
        return answer


def _request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    for name, value in headers.items():
        if not value.isprintable() or not value.isascii():
            raise ValueError(f"{name}: {value!r}: a header is of printable ASCII characters")
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("ascii")


class _Answer:
    """One answer, found by httptools in what the stream brings."""

    def __init__(self) -> None:
        self.is_complete = False
        self.keeps_alive = False
        """Whether the connection can carry another exchange."""
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def response(self) -> Response:
        """The complete answer; to be asked for once."""
        del self._parser  # it refers to this object: neither should wait for the garbage collector
        return Response(self._status, self._headers, b"".join(self._body))

    def feed(self, data: bytes) -> None:
        """Takes what was received, nothing at the connection's end. Raises ConnectionError when that
        is no HTTP answer."""
        if not data:
            self._end()
            return
        if not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keeps_alive = False
            if not self.is_complete:
                raise ConnectionError(f"the answer is not HTTP: {error}") from None
        if not self._status and self._head_bytes > _HEAD_BYTES:
            raise ConnectionError(f"the answer's headers exceed {_HEAD_BYTES} bytes")

    def _end(self) -> None:
        framing = {"content-length", "transfer-encoding"}
        if not self._status or framing & self._headers.keys():
            raise ConnectionResetError("the connection ended before the answer did")
        self.is_complete = True

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise ValueError("bytes behind the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:  # after it, a trailer
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer
            self._headers.clear()
            return
        self._status = status
        self.keeps_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.is_complete = self._status != 0


async def connect(
    host: str, port: int, tls: ssl.SSLContext | None = None, server_name: str | None = None
) -> Stream:
    """A stream to the address of `host` that accepts first. Raises OSError."""
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sock = await _connected(addresses, host)
    if tls is None:
        return _PlainStream(sock)
    try:
        stream = _TlsStream(sock, tls, server_name or host)
        await stream.handshake()
    except BaseException:
        sock.close()
        raise
    return stream


async def _connected(addresses: Sequence[Any], host: str) -> socket.socket:
    """A socket at one of the addresses. Each gets a head start of a quarter of a second over the next
    (RFC 8305), so that one that swallows packets does not hide the others. Raises OSError."""
    if len(addresses) == 1:
        return await _try(addresses[0])
    failure: OSError = ConnectionError(f"{host} has no address")
    left, trying = list(addresses), set[asyncio.Task[socket.socket]]()
    try:
        while left or trying:
            if left:
                trying.add(asyncio.create_task(_try(left.pop(0))))
            done, trying = await asyncio.wait(
                trying,
                timeout=_HEAD_START_S if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    trying |= done - {task}
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                failure = error
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_close_unused)
    raise failure


async def _try(address: Any) -> socket.socket:
    family, kind, protocol, _, target = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_unused(task: asyncio.Task[socket.socket]) -> None:
    """Of an address that accepted as well, a moment too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


class _PlainStream:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    async def send(self, data: bytes | memoryview) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, _RECEIVE_BYTES)

    def is_usable(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # the end, or an answer that nobody asked for

    def close(self) -> None:
        self._socket.close()


class _TlsStream:
    """TLS by memory buffers over the same plain socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _SEND_BYTES):
            self._tls.write(view[start : start + _SEND_BYTES])
            await self._flush()

    async def receive(self) -> bytes:
        while True:
            try:
                return self._tls.read(_RECEIVE_BYTES)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def is_usable(self) -> bool:
        # Session tickets may lie unread: only an end is telling.
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _fill(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._socket, _RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the connection ended within TLS")
        self._incoming.write(data)
