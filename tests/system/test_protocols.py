"""The real client against the real chassis: both wires and no wire give the same, replicas may die."""

from __future__ import annotations

import io
import signal
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from processes import Service, Services
from reward_api import AsyncRewardClient, AsyncRewardSuite, ItemFailure, RewardClient
from reward_api.wire.messages import RewardMetadata, ScoreRequest, ScoreResponse
from reward_services.chassis.service import RewardService
from reward_services.jpeg.scorer import SCORER

pytestmark = pytest.mark.system


def pictures(count: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (count, 6, 8, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(s).resize((64, 48))) for s in smooth])


class InProcess:
    """The service without a port, as the client's transport."""

    def __init__(self, service: RewardService) -> None:
        self._service = service

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreResponse:
        return await self._service.score(request, timeout_s=timeout_s)

    async def metadata(self, *, timeout_s: float) -> RewardMetadata:
        return self._service.metadata()

    async def ready(self, *, timeout_s: float) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def jpeg(services: Services) -> Service:
    return services.start("-m", "reward_services", "jpeg")


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def test_http_grpc_and_in_process_give_the_same(jpeg: Service) -> None:
    images = pictures()
    prompts = ["any"] * len(images)
    forms: dict[str, Any] = {
        "packed": images,
        "list": list(images),
        "png": [as_png(image) for image in images],
    }
    found: dict[tuple[str, str], list[float]] = {}
    async with RewardService("jpeg", SCORER(SCORER.Settings())) as service:
        clients = {
            "http": AsyncRewardClient(jpeg.http),
            "grpc": AsyncRewardClient(jpeg.grpc),
            "in-process": AsyncRewardClient(transport=InProcess(service)),
        }
        metadata = {}
        for wire, client in clients.items():
            async with client:
                for form, given in forms.items():
                    batch = await client.score(given, prompts)
                    found[wire, form] = batch.values.tolist()
                metadata[wire] = await client.metadata()
    first = found["http", "packed"]
    assert len(set(first)) == len(first)
    assert all(values == first for values in found.values())
    assert metadata["http"] == metadata["grpc"]
    assert metadata["in-process"].revision == metadata["http"].revision


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_a_poisoned_item_costs_nobody_else(jpeg: Service, wire: str) -> None:
    images = [as_png(image) for image in pictures(31)]
    async with AsyncRewardClient(getattr(jpeg, wire), on_error="nan") as client:
        clean = await client.score(images, ["x"] * 31)
        broken = [*images[:7], images[7][: len(images[7]) // 2], *images[7:]]
        batch = await client.score(broken, ["x"] * 32)
    assert list(batch.errors) == [7]
    assert isinstance(batch.errors[7], ItemFailure)
    assert batch.errors[7].reason == "IMAGE_DECODE"
    assert np.delete(batch.values, 7).tolist() == clean.values.tolist()


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_a_killed_replica_loses_no_score(services: Services, wire: str) -> None:
    replicas = [services.start("-m", "reward_services", "jpeg") for _ in range(2)]
    images = pictures(4)
    async with AsyncRewardClient([getattr(replica, wire) for replica in replicas]) as client:
        expected = (await client.score(images, ["x"] * 4)).values.tolist()
        for round_number in range(30):
            if round_number == 5:
                replicas[0].process.send_signal(signal.SIGKILL)
            assert (await client.score(images, ["x"] * 4)).values.tolist() == expected


async def test_a_rolling_restart_fails_no_call(services: Services) -> None:
    replicas = [services.start("-m", "reward_services", "jpeg") for _ in range(2)]
    images = pictures(4)
    async with AsyncRewardClient([replica.http for replica in replicas]) as client:
        expected = (await client.score(images, ["x"] * 4)).values.tolist()
        for replica in replicas:
            replica.process.send_signal(signal.SIGTERM)
            while replica.process.poll() is None:
                assert (await client.score(images, ["x"] * 4)).values.tolist() == expected
            assert replica.process.returncode == 0
            port = int(replica.http.rpartition(":")[2])
            services.start("-m", "reward_services", "jpeg", http_port=port)


async def test_a_suite_adds_two_real_rewards(
    services: Services, brightness: Service, jpeg: Service
) -> None:
    images = pictures(5)
    async with AsyncRewardSuite(
        {"bright": brightness.grpc, "jpeg": jpeg.http}, {"bright": 2.0, "jpeg": 0.5}
    ) as suite:
        scores = await suite.score(images, ["x"] * 5)
    expected = 2 * scores.rewards["bright"].values + 0.5 * scores.rewards["jpeg"].values
    np.testing.assert_allclose(scores.values, expected)
    np.testing.assert_allclose(scores.rewards["bright"].values, images.mean((1, 2, 3)) / 255)


def test_the_docs_page_and_metrics_are_there(jpeg: Service) -> None:
    with RewardClient(jpeg.http) as client:
        client.score(pictures(3), ["x"] * 3)
    assert "/v1/score" in httpx.get(f"{jpeg.http}/openapi.json").json()["paths"]
    assert httpx.get(f"{jpeg.http}/docs").status_code == 200
    assert "reward_items_total" in httpx.get(f"{jpeg.http}/metrics").text
