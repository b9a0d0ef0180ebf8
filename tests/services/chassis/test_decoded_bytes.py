"""Kilobytes of file that are megabytes of pixels: what calls hold decoded is bounded, over all of them."""

import asyncio
import io

import pytest
from conftest import assert_nothing_left, hold_device, queued
from PIL import Image as pillow

from reward_api import AsyncRewardClient
from reward_api.errors import InvalidRequest, Overloaded, Reason
from reward_api.wire.messages import Image, Item, ScoreRequest

SIDE = 100
PIXELS = SIDE * SIDE * 3


def png():
    file = io.BytesIO()
    pillow.new("RGB", (SIDE, SIDE), "red").save(file, "PNG")
    return file.getvalue()


def files(count, prompt=""):
    return ScoreRequest(items=[Item(prompt=prompt, image=Image(data=png()))] * count)


async def test_a_call_that_no_moment_has_room_for(start):
    service, _ = await start(max_decoded_bytes=3 * PIXELS)
    assert len((await service.score(files(3))).results) == 3
    with pytest.raises(InvalidRequest, match="max_decoded_bytes") as caught:
        await service.score(files(4))
    assert caught.value.reason is Reason.REQUEST_TOO_LARGE
    await _let_go(service)
    assert len((await service.score(files(3))).results) == 3


async def test_calls_that_come_together(start):
    service, scorer = await start(max_decoded_bytes=3 * PIXELS)
    held = await hold_device(service, scorer)
    waiting = asyncio.create_task(service.score(files(2)))
    await queued(service, 2)
    assert service.decoded.bytes == 2 * PIXELS
    with pytest.raises(Overloaded) as caught:
        await service.score(files(2))
    assert caught.value.retry_after_s
    scorer.gate.set()
    assert len((await waiting).results) == 2
    await held
    await _let_go(service)
    assert_nothing_left(service)


async def test_raw_pixels_are_bounded_by_their_bytes_alone(start):
    service, _ = await start(max_decoded_bytes=1)
    image = Image(data=bytes(PIXELS), height=SIDE, width=SIDE)
    assert (await service.score(ScoreRequest(items=[Item(image=image)] * 4))).results[3].score


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_our_client_sends_fewer_at_a_time(serve, wire):
    running = await serve(max_decoded_bytes=3 * PIXELS)
    urls = {"http": str(running.http.base_url), "grpc": f"grpc://{running.grpc_target}"}
    async with AsyncRewardClient(urls[wire], max_calls=1) as client:
        batch = await client.score([png()] * 10, ["a"] * 10)
    assert batch.valid.all()
    await _let_go(running.service)


async def _let_go(service):
    async with asyncio.timeout(10):
        while service.decoded.bytes:
            await asyncio.sleep(0.002)
