"""Real servers on free ports, in the test's own event loop."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_scorer import FakeScorer, FakeSettings

from reward_api.wire.messages import Image, Item, PackedImages, ScoreRequest
from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.grpc.app import GrpcFront
from reward_services.chassis.http.server import HttpFront
from reward_services.chassis.service import RewardService
from reward_services.chassis.settings import ServiceSettings
from reward_services.dialects import GRPC_HANDLERS, HTTP_ROUTERS

PIXELS = np.random.default_rng(7).integers(0, 256, (64, 8, 6, 3), np.uint8)


def packed_request(*prompts, **fields):
    """Item i has prompt i and picture i of PIXELS, in one tensor."""
    count = len(prompts)
    packed = PackedImages(data=PIXELS[:count].tobytes(), count=count, height=8, width=6)
    items = [Item(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]
    return ScoreRequest(items=items, packed_images=packed, **fields)


def raw_request(index, prompt="", **fields):
    """One item with picture `index` of PIXELS."""
    image = Image(data=PIXELS[index].tobytes(), height=8, width=6)
    return ScoreRequest(items=[Item(prompt=prompt, image=image)], **fields)


async def hold_device(service, scorer, prompt="first"):
    """Starts a call whose batch stays on the device until `scorer.gate` opens."""
    scorer.gate.clear()
    scorer.is_busy.clear()
    task = asyncio.create_task(service.score(raw_request(0, prompt)))
    await asyncio.to_thread(scorer.is_busy.wait, 5)
    return task


async def queued(service, count):
    """Waits until `count` items are queued."""
    async with asyncio.timeout(5):
        while len(service._batcher.queue) != count:
            await asyncio.sleep(0.002)


def assert_nothing_left(service):
    assert len(service._batcher.queue) == 0
    assert not service._batcher.tickets
    assert service.admission.items == 0
    assert service.admission.bytes == 0
    assert service.inflight == 0


@dataclass
class Running:
    """A service with its open ports, a client for each, and the scorer behind."""

    service: RewardService
    scorer: FakeScorer
    http: httpx.AsyncClient
    grpc_target: str
    channel: grpc.aio.Channel
    http_front: HttpFront
    grpc_front: GrpcFront


@pytest.fixture
async def start():
    """Starts services without ports: `service, scorer = await start(max_batch_items=4)`."""
    started = []

    async def _start(own=None, *, kind=FakeScorer, **settings):
        scorer = kind(own or FakeSettings())
        service = RewardService("fake", scorer, ServiceSettings(device="cpu", **settings))
        started.append((service, scorer))
        await service.start()
        scorer.batches.clear()
        return service, scorer

    yield _start
    for service, scorer in started:
        scorer.gate.set()
        service.close()


@pytest.fixture
async def serve(start):
    """Starts servers: `running = await serve(max_batch_items=4)`."""
    started = []

    async def _serve(own=None, *, token=None, **settings):
        service, scorer = await start(own, http_port=0, grpc_port=0, **settings)
        check = TokenCheck(token) if token else None
        http_front, grpc_front = (
            HttpFront(service, check, HTTP_ROUTERS),
            GrpcFront(service, check, GRPC_HANDLERS),
        )
        url = f"http://127.0.0.1:{await http_front.start()}"
        target = f"127.0.0.1:{await grpc_front.start()}"
        channel = grpc.aio.insecure_channel(target)
        await grpc_front.set_serving(True)
        http = httpx.AsyncClient(base_url=url, timeout=20)
        running = Running(service, scorer, http, target, channel, http_front, grpc_front)
        started.append(running)
        return running

    yield _serve
    for running in started:
        running.scorer.gate.set()
        await running.http.aclose()
        await running.channel.close()
        await asyncio.gather(running.http_front.stop(1), running.grpc_front.stop(1))
