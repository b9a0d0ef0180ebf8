"""One HTTP/1.1 connection and what a server may send on it, byte by byte."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from reward_api.transport.http_connection import Connection, connect


class Played:
    """A stream that brings `data`, `size` bytes at a time, then ends."""

    def __init__(self, data, size):
        self.pieces = iter([data[i : i + size] for i in range(0, len(data), size)])
        self.sent = b""

    async def send(self, data):
        self.sent += bytes(data)

    async def receive(self):
        return next(self.pieces, b"")

    def is_usable(self):
        return True

    def close(self):
        pass


async def test_an_end_before_the_body_is_sent_is_no_answer():
    class Ended(Played):
        async def send(self, data):
            raise BrokenPipeError

    body = bytes(100_000)
    with pytest.raises(ConnectionError, match="ended before the answer"):
        await Connection(Ended(b"", 1)).exchange(
            "POST", "/v1/score", {"host": "x", "content-length": str(len(body))}, [body]
        )


async def played(data, size=65536, **headers):
    connection = Connection(Played(data, size))
    return await connection.exchange("GET", "/", {"host": "x", **headers}), connection.is_idle()


OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"X-A: \xe9\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize("size", [1, 7, 65536])
@pytest.mark.parametrize(
    ("data", "status", "body", "is_idle"),
    [
        (SIZED, 200, b"ok", True),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 100 Continue\r\nx-b: 1\r\n\r\n" + SIZED, 200, b"ok", True),
        (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 200, b"ok", True),
        (
            OK + b"x-b: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-b: trailer\r\n\r\n",
            200,
            b"",
            True,
        ),
        (OK + b"\r\nuntil the end", 200, b"until the end", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
    ],
)
async def test_answers_in_pieces(data, size, status, body, is_idle):
    response, was_idle = await played(data, size)
    assert (response.status, response.body, was_idle) == (status, body, is_idle)
    assert response.headers.get("x-a", "é") == "é"
    assert response.headers.get("x-b", "1") == "1"


@pytest.mark.parametrize("rest", [SIZED, b"garbage", b"HTTP/1.1 503 Stale"])
async def test_bytes_behind_an_answer_end_the_connection(rest):
    response, is_idle = await played(SIZED + rest)
    assert (response.status, response.body, is_idle) == (200, b"ok", False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", "not HTTP"),
        (OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nokay", "Content-Length"),
        (OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok", "not HTTP"),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nok", "ended before"),
        (OK + b"x: 1", "ended before"),
        (OK + b"x: %b\r\n" % bytes(100_000).replace(b"\0", b"x"), "headers exceed"),
    ],
)
async def test_answers_that_are_none(data, message):
    with pytest.raises(ConnectionError, match=message):
        await played(data, 4096)


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\0", "ä"])
async def test_a_header_that_cannot_be_sent(value):
    with pytest.raises(ValueError, match=r"x-request-id.*printable ASCII"):
        await played(SIZED, **{"x-request-id": value})


def _address(port, host="127.0.0.1"):
    return socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)


async def _connects(monkeypatch, *addresses):
    """The peer of a connection to a name with these addresses."""

    async def known(*_, **__):
        return list(addresses)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", known)
    stream: Any = await connect("name", 80)
    try:
        return stream._socket.getpeername()
    finally:
        stream.close()


async def test_an_address_that_swallows_packets_does_not_hide_the_next(monkeypatch):
    """As where a name has an IPv6 address whose network is broken."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_server(("127.0.0.1", 0)) as other,
        contextlib.ExitStack() as waiting,
    ):
        hole, port = full.getsockname()[1], other.getsockname()[1]
        for _ in range(4):  # the queue is full: what comes now is dropped without an answer
            sock = waiting.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", hole))
        async with asyncio.timeout(30):
            found = await _connects(monkeypatch, _address(hole), _address(port))
        assert found == ("127.0.0.1", port)


async def test_an_address_that_refuses_is_left_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, so that nobody else gets it, and not listening
        refusing, port = _address(closed.getsockname()[1]), other.getsockname()[1]
        assert await _connects(monkeypatch, refusing, _address(port)) == ("127.0.0.1", port)
        with pytest.raises(ConnectionRefusedError):
            await _connects(monkeypatch, refusing, refusing)
