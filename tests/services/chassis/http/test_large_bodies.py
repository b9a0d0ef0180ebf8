"""Bodies that go from the socket into their buffer (http_protocol.py), on both event loops."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from reward_api.wire.framing import encode_request
from reward_api.wire.messages import Item, PackedImages, ScoreRequest

PIXELS = np.random.default_rng(3).integers(0, 256, (8, 200, 300, 3), np.uint8)
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"


def _message(prompts, **headers):
    """Bytes of a call of 180 kB per prompt."""
    count = len(prompts)
    pixels = PackedImages(data=PIXELS[:count].tobytes(), count=count, height=200, width=300)
    items = [Item(id=prompt, prompt=prompt) for prompt in prompts]
    fields, parts = encode_request(ScoreRequest(items=items, packed_images=pixels))
    body = b"".join(parts)
    fields = {**fields, **headers, "content-length": str(len(body))}
    return HEAD + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode() + b"\r\n" + body


async def _answer(reader):
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


def _assert_scored(answer, prompts):
    status, content = answer
    assert status == 200, content
    assert [result["id"] for result in content["results"]] == prompts
    for i, result in enumerate(content["results"]):
        assert result["score"]["scores"]["mean"] == pytest.approx(PIXELS[i].mean())


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.system)])
async def connect(request, serve, services):
    """Opens connections to a service on the event loop of that name."""
    if request.param == "asyncio":
        running = await serve()
        port = running.http.base_url.port
    else:
        service = await asyncio.to_thread(
            services.start, str(Path(__file__).parents[1] / "fake_scorer.py")
        )
        port = int(service.http.rpartition(":")[2])

    @asynccontextmanager
    async def _connect():
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        yield reader, writer
        writer.close()
        await writer.wait_closed()

    return _connect


async def _wait_inflight(connect, count):
    async with asyncio.timeout(10):
        while True:
            async with connect() as (reader, writer):
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if f"reward_inflight_requests {count}.0".encode() in await reader.read():
                    return
            await asyncio.sleep(0.01)


async def test_calls_large_and_small_share_a_connection(connect):
    async with connect() as (reader, writer):
        for prompts in (["a", "b", "c"], ["d"], list("efghijkl")):
            writer.write(_message(prompts))
            _assert_scored(await _answer(reader), prompts)


async def test_pieces_and_pauses(connect):
    message = _message(["a", "b", "c", "d"])
    async with connect() as (reader, writer):
        for start in range(0, len(message), 70_001):
            writer.write(message[start : start + 70_001])
            await writer.drain()
            await asyncio.sleep(0.005)
        _assert_scored(await _answer(reader), list("abcd"))


async def test_the_next_call_may_follow_at_once(connect):
    calls = [["a", "b"], list("cdefgh"), ["i"]]
    async with connect() as (reader, writer):
        writer.write(b"".join(map(_message, calls)))
        for prompts in calls:
            _assert_scored(await _answer(reader), prompts)


async def test_a_body_that_stops_meets_the_deadline_and_its_connection_lives_on(connect):
    message = _message(list("abcdefgh"), **{"x-reward-timeout-ms": "300"})
    async with connect() as (reader, writer):
        writer.write(message[: len(message) // 2])
        status, problem = await _answer(reader)
        assert (status, problem["reason"]) == (504, "DEADLINE")
        writer.write(message[len(message) // 2 :] + _message(["next"]))
        _assert_scored(await _answer(reader), ["next"])


async def test_a_caller_that_goes_away_within_the_body_leaves_nothing(connect):
    message = _message(list("abcdefgh"))
    async with connect() as (_, writer):
        writer.write(message[: len(message) // 2])
        await writer.drain()
        await _wait_inflight(connect, 1)
    await _wait_inflight(connect, 0)


async def test_an_end_of_stream_within_the_body_is_a_caller_that_went_away(connect):
    message = _message(list("abcdefgh"))
    async with connect() as (reader, writer):
        writer.write(message[: len(message) // 2])
        await _wait_inflight(connect, 1)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""
    await _wait_inflight(connect, 0)
