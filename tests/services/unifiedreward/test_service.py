"""The judge's service as a process: both wires, and an engine that goes away and comes back."""

import time

import numpy as np
import pytest

from openai_engine import Reply, scripted_engine
from reward_api import RewardClient, Unavailable

pytestmark = pytest.mark.system

IMAGES = np.random.default_rng(5).integers(0, 256, (3, 32, 48, 3), np.uint8)
PROMPTS = ["a red cube", "mumble", "a blue ball"]


def script(text):
    return [Reply("no idea" if "mumble" in text else "Final Score: 4.0")]


def wait_for_readiness(client, *, is_ready):
    deadline = time.monotonic() + 60
    while True:
        try:
            client.wait_ready(0.5)
            found = True
        except Unavailable:
            found = False
        if found == is_ready:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


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
    with RewardClient(service.http, timeout_s=3) as http, RewardClient(service.grpc) as grpc:
        wait_for_readiness(http, is_ready=False)
        wait_for_readiness(grpc, is_ready=False)
        with pytest.raises(Unavailable, match="does not answer"):
            http.score(IMAGES, PROMPTS)
        with scripted_engine(script, port=port):
            wait_for_readiness(http, is_ready=True)
            wait_for_readiness(grpc, is_ready=True)
            assert http.score(IMAGES[:1], PROMPTS[:1]).values.tolist() == [0.8]
