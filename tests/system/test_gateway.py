"""The gateway of compose, as docker/haproxy.cfg has it, over real services. Needs HAProxy, not Docker."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from haproxy import HAPROXY, Gateway
from processes import ROOT, Services
from reward_api import RewardClient
from reward_api.errors import Reason, Unavailable
from reward_api.wire.messages import Problem
from reward_api.wire.v1 import reward_pb2, reward_pb2_grpc

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed"),
]

SIGN = (ROOT / "docs" / "sign.png").read_bytes()
NEW = [f"127.0.0.{n}" for n in range(2, 7)]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    with gateway.running():
        yield gateway


class Callers:
    """Over HTTP and gRPC without retries, as trainers and curl call; counts how calls end."""

    def __init__(self, gateway: Gateway) -> None:
        self.ends: Counter[object] = Counter()
        self._stop = threading.Event()
        self._url = f"http://127.0.0.1:{gateway.http_port}/v1/score"
        self._target = f"127.0.0.1:{gateway.grpc_port}"
        callers = [self._http, self._http, self._grpc]
        self._threads = [threading.Thread(target=caller) for caller in callers]

    def _http(self) -> None:
        size = f'{{"items": [{{"image": {{"binary_data_size": {len(SIGN)}}}}}]}}'.encode()
        headers = {"Content-Type": "application/octet-stream"}
        headers["Inference-Header-Content-Length"] = str(len(size))
        while not self._stop.is_set():
            self.ends[httpx.post(self._url, content=size + SIGN, headers=headers).status_code] += 1

    def _grpc(self) -> None:
        item = reward_pb2.Item(image=reward_pb2.Image(encoded=SIGN))
        request = reward_pb2.ScoreRequest(items=[item])
        while not self._stop.is_set():
            with grpc.insecure_channel(self._target) as channel:
                try:
                    reward_pb2_grpc.RewardServiceStub(channel).Score(request, timeout=30)
                    self.ends["OK"] += 1
                except grpc.RpcError as error:
                    self.ends[error.code()] += 1  # pyright: ignore[reportAttributeAccessIssue]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_replicas_that_are_named_before_they_listen_cost_no_call(
    gateway: Gateway, services: Services
) -> None:
    """Docker's DNS names a container when it starts, seconds before its server answers."""
    http, grpc_port = gateway.replica_ports
    services.start("-m", "reward_services", "jpeg", http_port=http, grpc_port=grpc_port)
    gateway.nameserver.addresses["jpeg"] = ["127.0.0.1"]
    for url in (f"http://127.0.0.1:{gateway.http_port}", f"grpc://127.0.0.1:{gateway.grpc_port}"):
        with RewardClient(url) as client:
            client.wait_ready(30)
    with Callers(gateway) as callers:
        gateway.nameserver.addresses["jpeg"] = ["127.0.0.1", *NEW]
        deadline = time.monotonic() + 60
        while sum(f"jpeg{n} is DOWN" in gateway.log() for n in range(2, 7)) < len(NEW):
            assert time.monotonic() < deadline, gateway.log()
            time.sleep(0.05)
    assert set(callers.ends) == {200, "OK"}, callers.ends


def test_no_replica_is_said_in_the_contracts_words(gateway: Gateway) -> None:
    url = f"http://127.0.0.1:{gateway.http_port}"
    answer = httpx.post(f"{url}/v1/score", json={})
    assert answer.status_code == 503
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    problem = Problem.model_validate_json(answer.content)
    assert problem.reason == Reason.LOADING
    assert problem.status == 503
    for address in (url, f"grpc://127.0.0.1:{gateway.grpc_port}"):
        with (
            RewardClient(address, timeout_s=1) as client,
            pytest.raises(Unavailable, match=r"no replica of this reward|503"),
        ):
            client.score([SIGN], ["x"])
