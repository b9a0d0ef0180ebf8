"""What the published clients of other projects send, byte for byte, and what they were answered.

tests/golden/clients holds exchanges that those clients had with a service whose reward is Judged, or with
a gateway before three of them: one file for a client, with its version and date. Bodies only, no code.
"""

import base64
import json
import pickle
import re
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from judged import FAILURES, Judged, _score
from reward_api import AsyncRewardClient
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore
from reward_api.wire.v1 import open_inference_pb2
from reward_services.chassis.scorer import Sample
from reward_services.gateway.app import Bodies, create_app
from reward_services.gateway.metrics import GatewayMetrics
from reward_services.gateway.rewards import Rewards

CLIENTS = sorted((Path(__file__).parents[2] / "golden" / "clients").glob("*.json"))
# What a process, a build or a clock decides.
OWN = {"model_version", "version", "versions", "uuid", "duration", "decoded_duration"}


def content(recorded: Any) -> bytes:
    return recorded.encode() if isinstance(recorded, str) else base64.b64decode(recorded["b64"])


def like(answer):
    """The answer without what is its own, numbers to what JPEG decoders agree on."""
    if isinstance(answer, dict):
        return {key: like(value) for key, value in answer.items() if key not in OWN}
    if isinstance(answer, list):
        return [like(value) for value in answer]
    return pytest.approx(answer, abs=2e-3) if isinstance(answer, float) else answer


def same(answer, recorded):
    assert like(recorded) == {k: v for k, v in answer.items() if k not in OWN}


async def replay(http, exchanges):
    renamed = {}  # what a gateway calls a batch is its own
    for one in exchanges:
        body = content(one["body"])
        for old, new in renamed.items():
            body = body.replace(old.encode(), new.encode())
        answer = await http.request(
            one["method"], one["path"], content=body, headers=one["headers"]
        )
        assert answer.status_code == one["status"], (one["path"], answer.text)
        for name, value in one["answer_headers"].items():
            assert answer.headers[name] == value
        if isinstance(one["answer"], dict) and "json" in one["answer"]:
            found, recorded = answer.json(), one["answer"]["json"]
            if "uuid" in found:
                renamed[recorded["uuid"]] = found["uuid"]
            same(found, recorded)
        elif answer.headers["content-type"] == "application/json":
            assert answer.text == one["answer"]
        else:
            compare_bytes(answer.content, content(one["answer"]))


def compare_bytes(found, recorded):
    if recorded[:2] == b"\x80\x04" or recorded[:2] == b"\x80\x05":  # pickled by us, plain data
        same(pickle.loads(found), pickle.loads(recorded))
        return
    # The Open Inference Protocol's binary form: JSON, then numbers that are exact for raw pixels.
    head = re.compile(rb'"model_version":"[^"]*"')
    assert head.sub(b"", found) == head.sub(b"", recorded)


async def replay_grpc(target, exchanges):
    async with grpc.aio.insecure_channel(target) as channel:
        for one in exchanges:
            call = channel.unary_unary(one["grpc"])
            if one["status"] != "OK":
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(content(one["body"]))
                status = caught.value.code().name, caught.value.details()
                assert status == (one["status"], one["answer"])
                continue
            found = await call(content(one["body"]))
            if one["grpc"].endswith("/ModelInfer"):
                assert infer(found) == infer(content(one["answer"]))
            elif one["grpc"].endswith("/ModelConfig"):
                assert found == content(one["answer"])
            else:
                assert found == content(one["answer"]), one["grpc"]


def infer(data):
    answer = open_inference_pb2.ModelInferResponse.FromString(data)
    answer.model_version = ""
    return answer


def judged(image, prompt, metadata):
    if prompt in FAILURES:
        raise FAILURES[prompt]
    score: ItemScore = _score(Sample(image=image, prompt=prompt, metadata=metadata))
    return score


@pytest.fixture
async def gateway():
    rewards = Rewards(
        {
            name: AsyncRewardClient(transport=FakeReward(judged, revision="r1"))
            for name in ("unifiedreward", "pickscore", "ocr")
        }
    )
    app = create_app(rewards, Bodies(2**24, 2**24), GatewayMetrics())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
    app.state.queue.close()
    await rewards.close()


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
async def test_a_published_client_gets_what_it_got(path, serve, gateway):
    recorded = json.loads(path.read_text())
    over_http = [one for one in recorded["exchanges"] if "path" in one]
    over_grpc = [one for one in recorded["exchanges"] if "grpc" in one]
    if recorded["server"] == "gateway":
        await replay(gateway, over_http)
        return
    running = await serve(
        Judged(Judged.Settings()), dialects="oip,flow-factory,unirl,get-reward,pickle"
    )
    await replay(running.http, over_http)
    await replay_grpc(running.target, over_grpc)


def test_every_client_is_in_the_table():
    """With the version that the recordings have."""
    readme = Path(__file__).parents[3] / "services/reward_services/dialects/README.md"
    table = readme.read_text()
    for path in CLIENTS:
        recorded = json.loads(path.read_text())
        version = recorded["version"].rpartition(" at ")[2].partition(" with ")[0]
        assert version in table, (path.stem, version)
        assert recorded["recorded"] in table
