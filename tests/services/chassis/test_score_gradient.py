"""ScoreGradient through real sockets: both protocols, the client, batching, refusals."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest
from conftest import PIXELS, hold_device, packed_request, queued
from fake_scorer import FakeScorer

from processes import Service, Services
from reward_api import AsyncRewardClient, RewardClient
from reward_api.errors import InvalidRequest, ItemsFailed, Reason, ServerFault
from reward_api.testing import FakeReward
from reward_api.wire.gradients import pack_gradient, unpack_gradient
from reward_api.wire.messages import GradientRequest, ItemScore, PixelGradient, ScoreResponse
from reward_services.chassis.scorer import Sample

IMAGES = np.random.default_rng(3).integers(0, 256, (5, 6, 4, 3), np.uint8)


class Differentiable(FakeScorer):
    """Mean pixel, of pixels in 0..1 here, times 255: every number's gradient is 255 / size. The prompt
    `flat` forgets the gradient."""

    def score_gradient(self, batch):
        assert all(sample.wants_gradient for sample in batch)
        return [self._with_gradient(o, s) for o, s in zip(self.score(batch), batch, strict=True)]

    def score(self, batch):
        assert len({sample.wants_gradient for sample in batch}) == 1
        return super().score(batch)

    def _with_gradient(self, outcome, sample: Sample):
        if not isinstance(outcome, ItemScore) or sample.prompt == "flat":
            return outcome
        gradient = pack_gradient(np.full(sample.image.shape, 255 / sample.image.size))
        return outcome.model_copy(update={"gradient": gradient})


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_the_client_gets_scores_and_gradients(brightness: Service, wire: str) -> None:
    with RewardClient(getattr(brightness, wire), chunk_items=2) as client:
        assert client.metadata().has_gradient
        batch = client.score_gradient(IMAGES, ["a"] * 5)
        plain = client.score(IMAGES, ["a"] * 5)
    np.testing.assert_array_equal(batch.values, plain.values)
    assert plain.gradients == [None] * 5
    for gradient in batch.gradients:
        assert gradient is not None
        array = unpack_gradient(gradient)
        assert array.shape == (6, 4, 3)
        np.testing.assert_allclose(array, 1 / 72, rtol=1e-3)


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_reward_without_gradients_says_so(services: Services, wire: str) -> None:
    jpeg = services.start("-m", "reward_services", "jpeg")
    with RewardClient(getattr(jpeg, wire)) as client:
        assert not client.metadata().has_gradient
        with pytest.raises(InvalidRequest, match="jpeg has no gradient") as caught:
            client.score_gradient(IMAGES, ["a"] * 5)
        assert caught.value.reason is Reason.UNSUPPORTED
        assert client.score(IMAGES, ["a"] * 5).valid.all()


async def test_json_answers_hold_base64(serve) -> None:
    running = await serve(kind=Differentiable)
    image = {
        "data": base64.b64encode(PIXELS[0].tobytes()).decode(),
        "height": 8,
        "width": 6,
    }
    body = {"items": [{"prompt": "a", "image": image}, {"prompt": "nan", "image": image}]}
    answer = await running.http.post("/v1/score_gradient", json=body)
    assert answer.status_code == 200
    assert answer.json()["results"][0]["score"]["gradient"]["scale"] == pytest.approx(255 / 144)
    first, second = ScoreResponse.model_validate_json(answer.content).results
    assert first.score is not None
    assert first.score.gradient is not None
    np.testing.assert_allclose(unpack_gradient(first.score.gradient), 255 / 144, rtol=1e-3)
    assert second.error is not None
    assert second.error.reason is Reason.NON_FINITE_SCORE
    plain = await running.http.post("/v1/score", json=body)
    assert "gradient" not in plain.text
    documented = (await running.http.get("/openapi.json")).json()["paths"]
    assert "/v1/score_gradient" in documented


async def test_gradients_are_batched_over_callers_and_apart_from_scores(start) -> None:
    service, scorer = await start(kind=Differentiable)
    held = await hold_device(service, scorer)
    plain = asyncio.create_task(service.score(packed_request("a", "b")))
    wanted = [
        asyncio.create_task(service.score(GradientRequest(**dict(packed_request("c", "d")))))
        for _ in range(2)
    ]
    await queued(service, 6)
    scorer.gate.set()
    await held
    assert all(r.score.gradient is None for r in (await plain).results)
    for task in wanted:
        assert all(r.score.gradient is not None for r in (await task).results)
    assert [len(batch) for batch in scorer.batches] == [1, 2, 4]


async def test_a_scorer_that_forgets_a_gradient_costs_that_item_only(start) -> None:
    service, _ = await start(kind=Differentiable)
    request = GradientRequest(**dict(packed_request("a", "flat", "boom")))
    first, flat, boom = (await service.score(request)).results
    assert first.score is not None
    assert flat.error is not None
    assert "no gradient of the image's shape" in flat.error.message
    assert boom.error is not None
    assert boom.error.reason is Reason.MODEL_ERROR


async def test_within_the_process() -> None:
    fake = FakeReward(gradient=lambda image, prompt, metadata: np.ones(image.shape) / image.size)
    async with AsyncRewardClient(transport=fake) as client:
        batch = await client.score_gradient(IMAGES, ["a"] * 5)
    assert all(gradient is not None for gradient in batch.gradients)
    async with AsyncRewardClient(transport=FakeReward()) as client:
        with pytest.raises((InvalidRequest, ItemsFailed), match="no gradient"):
            await client.score_gradient(IMAGES, ["a"] * 5)


def test_packing_keeps_eleven_bits_at_any_scale() -> None:
    for size in (1e-30, 1e-6, 1.0, 1e6):
        gradient = np.random.default_rng(0).normal(size=(3, 5, 3)) * size
        found = unpack_gradient(pack_gradient(gradient))
        np.testing.assert_allclose(found, gradient, atol=2**-11 * np.abs(gradient).max())
    zeros = pack_gradient(np.zeros((2, 2, 3)))
    assert zeros.scale == 0
    assert not unpack_gradient(zeros).any()
    with pytest.raises(ValueError, match="NaN"):
        pack_gradient(np.full((1, 1, 3), np.nan))
    with pytest.raises(ServerFault, match="7 bytes"):
        unpack_gradient(PixelGradient(data=b"1234567", height=1, width=1, scale=1.0))
