"""Real servers with chosen dialects on free ports, in the test's own event loop."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from PIL import Image as pillow

from judged import Judged
from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.grpc.app import GrpcFront
from reward_services.chassis.http.server import HttpFront
from reward_services.chassis.scorer import Scorer
from reward_services.chassis.service import RewardService
from reward_services.chassis.settings import ServiceSettings
from reward_services.dialects import GRPC_HANDLERS, HTTP_ROUTERS


@dataclass
class Running:
    """A service with its open ports and an HTTP client."""

    service: RewardService
    scorer: Scorer
    http: httpx.AsyncClient
    url: str
    target: str
    http_front: HttpFront
    grpc_front: GrpcFront

    async def counted(self, protocol: str) -> dict[str, float]:
        """Calls under a protocol label, by code."""
        samples = self.service.metrics.registry.collect()
        return {
            sample.labels["code"]: sample.value
            for metric in samples
            for sample in metric.samples
            if sample.name == "reward_requests_total" and sample.labels["protocol"] == protocol
        }


@pytest.fixture
async def serve():
    """`running = await serve(dialects="pickle")`; `scorer=` replaces the Judged reward."""
    started: list[Running] = []

    async def _serve(scorer=None, *, name="judged", token=None, **settings):
        scorer = scorer or Judged(Judged.Settings())
        service = RewardService(
            name, scorer, ServiceSettings(device="cpu", http_port=0, grpc_port=0, **settings)
        )
        await service.start()
        if isinstance(scorer, Judged):
            scorer.metadata.clear()
        check = TokenCheck(token) if token else None
        http_front, grpc_front = (
            HttpFront(service, check, HTTP_ROUTERS),
            GrpcFront(service, check, GRPC_HANDLERS),
        )
        url = f"http://127.0.0.1:{await http_front.start()}"
        target = f"127.0.0.1:{await grpc_front.start()}"
        http = httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)
        running = Running(service, scorer, http, url, target, http_front, grpc_front)
        started.append(running)
        return running

    yield _serve
    for running in started:
        await running.http.aclose()
        await asyncio.gather(running.http_front.stop(1), running.grpc_front.stop(1))
        running.service.close()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Six pictures, uint8 [6, 8, 6, 3]."""
    return np.random.default_rng(7).integers(0, 256, (6, 8, 6, 3), np.uint8)


@pytest.fixture(scope="session")
def files(pixels) -> list[bytes]:
    """The same as PNG files."""
    return [png(picture) for picture in pixels]


@pytest.fixture(scope="session")
def texts(files) -> list[str]:
    """The same as base64."""
    return [base64.b64encode(file).decode() for file in files]


@pytest.fixture(scope="session")
def values(pixels) -> list[float]:
    """Their scores."""
    return [float(picture.mean() / 255) for picture in pixels]


@pytest.fixture(scope="session")
def wire(golden) -> dict:
    """Recorded request bodies of flow_grpo's client, by name."""
    recorded = json.loads((golden / "client_wire.json").read_text())["requests"]
    return {one["name"]: {**one, "body": base64.b64decode(one["body_b64"])} for one in recorded}


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(picture).save(file, "PNG")
    return file.getvalue()
