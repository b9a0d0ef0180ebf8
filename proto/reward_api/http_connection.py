"""HTTP/1.1 over asyncio sockets, for large bodies of several parts.

h11 speaks the protocol; the parts go from the caller's buffers to the socket without being joined
or copied, which takes a third of a general HTTP client's CPU for 6 MB of pixels. Plain sockets
rather than asyncio transports, so that nothing is tied to an event loop while a connection idles.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import h11

_RECEIVE_BYTES = 64 * 1024
_SEND_BYTES = 1024 * 1024
_JOIN_BYTES = 16 * 1024
"""Smaller pieces travel together."""
_SMALL_BYTES = 64 * 1024
"""Sent before the answer is awaited: it fits into the sockets' buffers."""


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
    """One HTTP/1.1 connection, one exchange at a time. Raises OSError when the connection fails,
    h11.RemoteProtocolError when the answer is not HTTP."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    def is_idle(self) -> bool:
        """Whether the last exchange ended as it should, with nothing behind the answer: what is left
        would be taken for the next one."""
        return self._h11.our_state is h11.IDLE and not self._h11.trailing_data[0]

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
        (a server that refuses it). `headers` must state the content-length of `parts`."""
        request = h11.Request(method=method, target=target, headers=list(headers.items()))
        # Before anything is received: h11 takes an end without a request for an orderly one.
        head = self._h11.send(request) or b""
        if sum(map(len, parts)) <= _SMALL_BYTES:
            # A connection that breaks now may have brought an answer that explains it.
            with contextlib.suppress(OSError):
                await self._send(head, parts)
            response = await self._receive()
        else:
            response = await self._receive_while_sending(head, parts)
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return response

    async def _receive_while_sending(
        self, head: bytes, parts: Sequence[bytes | memoryview]
    ) -> Response:
        sending = asyncio.create_task(self._send(head, parts))
        try:
            return await self._receive()
        finally:
            if not sending.done() or sending.exception():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

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
        if parts:
            # h11 counts what was sent, and need not see it.
            self._h11.send_with_data_passthrough(h11.Data(data=_Sent(parts)))  # pyright: ignore[reportArgumentType]
        self._h11.send(h11.EndOfMessage())

    async def _receive(self) -> Response:
        status, headers, body = 0, {}, []
        self._h11.receive_data(await self._stream.receive())
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self._stream.receive())
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                return Response(status, headers, b"".join(body))


class _Sent:
    """A body's length, where h11 asks for nothing else."""

    def __init__(self, parts: Sequence[bytes | memoryview]) -> None:
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size


async def connect(
    host: str, port: int, tls: ssl.SSLContext | None = None, server_name: str | None = None
) -> Stream:
    """A stream to the first address of `host` that accepts. Raises OSError."""
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = ConnectionError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, address)
            if tls is None:
                return _PlainStream(sock)
            stream = _TlsStream(sock, tls, server_name or host)
            await stream.handshake()
            return stream
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


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
