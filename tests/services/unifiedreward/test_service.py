"""The judge's service as a process: both wires, and an engine that goes away and comes back."""

import asyncio
import time
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from openai_engine import Reply, scripted_engine
from reward_api import RewardClient, Unavailable
from reward_api.transport.base import Credentials, parse_url
from reward_api.transport.open import open_transport
from reward_api.wire.messages import Image, Item, ScoreRequest

pytestmark = pytest.mark.system

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 32, 48, 3), np.uint8)
PROMPTS = ["a red cube", "mumble", "a blue ball"]


def script(text):
    return [Reply("no idea" if "mumble" in text else "Final Score: 4.0")]


def wait_for_readiness(service, *, is_ready):
    """Both ports say so. Each question has time enough: what is waited for is the answer."""
    with grpc.insecure_channel(service.grpc.removeprefix("grpc://")) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + 90
        while True:
            over_http = httpx.get(f"{service.http}/readyz", timeout=30).status_code == 200
            status = health.Check(health_pb2.HealthCheckRequest(), timeout=30).status
            over_grpc = status == health_pb2.HealthCheckResponse.SERVING
            if over_http == over_grpc == is_ready:
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)


async def score_once(url):
    """One attempt, where a client would come back until its deadline."""
    transport = open_transport(parse_url(url), Credentials())
    try:
        picture = Image(data=IMAGES[0].tobytes(), height=32, width=48)
        request = ScoreRequest(items=[Item(prompt=PROMPTS[0], image=picture)])
        return await transport.score(request, timeout_s=60)
    finally:
        await transport.close()


def test_readiness_follows_the_engine(services):
    with scripted_engine(script) as engine:
        url, port = engine.url, int(engine.url.rpartition(":")[2].partition("/")[0])
        service = services.start(
            "-m", "reward_services", "unifiedreward", REWARD_UNIFIEDREWARD_ENGINE_URL=url
        )
        for address in (service.http, service.grpc):
            with RewardClient(address, on_error="nan") as client:
                batch = client.score(IMAGES, PROMPTS)
                assert batch.values[[0, 2]].tolist() == [0.8, 0.8]
                assert {i: e.reason for i, e in batch.errors.items()} == {1: "JUDGE_PARSE"}
    wait_for_readiness(service, is_ready=False)
    for address in (service.http, service.grpc):
        with pytest.raises(Unavailable, match="does not answer"):
            asyncio.run(score_once(address))
    with scripted_engine(script, port=port):
        wait_for_readiness(service, is_ready=True)
        with RewardClient(service.http) as client:
            assert client.score(IMAGES[:1], PROMPTS[:1]).values.tolist() == [0.8]
