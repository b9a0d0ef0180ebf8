"""What is left of connections that end: nothing."""

import asyncio
import gc
import socket
import struct

import pytest

from reward_services.chassis.http.protocol import HttpProtocol


def _connections():
    gc.collect()
    return sum(type(found) is HttpProtocol for found in gc.get_objects())


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_a_connection_that_ended_is_let_go(serve, is_reset):
    """uvicorn's keep-alive timer used to hold one that was reset, for 75 seconds."""
    running = await serve()
    before = _connections()
    port = running.http.base_url.port
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        if is_reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
    async with asyncio.timeout(30):
        while _connections() > before:
            await asyncio.sleep(0.02)
