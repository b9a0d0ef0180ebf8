"""A call's retry gets its answer, a hedge joins it; another body under the same key is refused."""

import asyncio
import contextlib
from typing import Any

import httpx
import numpy as np
import pytest

from reward_api import AsyncRewardClient
from reward_api.errors import InvalidRequest, ItemFailure, Reason, Unavailable
from reward_api.wire.messages import (
    Image,
    Item,
    ItemError,
    ItemResult,
    ItemScore,
    ScoreRequest,
    ScoreResponse,
)
from reward_services.chassis.idempotency import Answers


def request(prompt="a", pixels=b"1"):
    return ScoreRequest(items=[Item(id="0", prompt=prompt, image=Image(data=pixels))])


def answer(reason=None):
    error = ItemError.of(ItemFailure(reason, "x")) if reason else None
    score = None if reason else ItemScore(value=1.0)
    return ScoreResponse(results=[ItemResult(id="0", score=score, error=error)])


class Work:
    """Counts its runs; answers when `go` is set."""

    def __init__(self, outcome=None):
        self.outcome = outcome or answer()
        self.runs = self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self):
        self.runs += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def test_a_retry_gets_the_answer_and_a_hedge_joins():
    answers, work = Answers(), Work()
    both = [asyncio.create_task(answers.once("k", request(), work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.go.set()
    first, second = await asyncio.gather(*both)
    assert first is second is await answers.once("k", request(), work)
    assert work.runs == 1
    await answers.once("other", request(), work)
    assert work.runs == 2


@pytest.mark.parametrize(
    "other",
    [
        request("b"),
        request(pixels=b"2"),
        request().model_copy(update={"include_details": True}),
        ScoreRequest(items=[Item(id="0", prompt="a", image=Image(data=b"1"), metadata={"n": 1})]),
    ],
)
async def test_a_key_with_another_body_is_refused(other):
    answers, work = Answers(), Work()
    work.go.set()
    await answers.once("k", request(), work)
    with pytest.raises(InvalidRequest, match="came with another body") as caught:
        await answers.once("k", other, work)
    assert (caught.value.reason, caught.value.http_status) == (Reason.KEY_REUSED, 422)
    assert work.runs == 1


@pytest.mark.parametrize(
    ("outcome", "runs"),
    [
        (Unavailable(Reason.LOADING, "x"), 2),
        (answer(Reason.JUDGE_PARSE), 2),
        (answer(Reason.PROMPT_TARGET), 1),
    ],
)
async def test_only_final_answers_are_kept(outcome, runs):
    answers, work = Answers(), Work(outcome)
    work.go.set()
    for _ in range(2):
        with contextlib.suppress(Unavailable):
            await answers.once("k", request(), work)
    assert work.runs == runs


async def test_the_work_ends_with_the_last_who_waits():
    answers, work = Answers(), Work()
    first, second = (asyncio.create_task(answers.once("k", request(), work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (work.runs, work.cancelled) == (1, 0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert len(answers) == 0
    again = asyncio.create_task(answers.once("k", request(), work))
    await asyncio.sleep(0)
    work.go.set()
    await again
    assert (work.runs, work.cancelled) == (2, 1)


async def test_answers_are_bounded_in_number_and_time(monkeypatch):
    answers, work = Answers(max_items=3, keep_s=10), Work()
    work.go.set()
    for i in range(5):
        await answers.once(f"k{i}", request(), work)
    assert len(answers) == 3
    await answers.once("k4", request(), work)
    assert work.runs == 5
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr("reward_services.chassis.idempotency.time.monotonic", lambda: now + 1e6)
    await answers.once("k4", request(), work)
    assert (work.runs, len(answers)) == (6, 1)


@pytest.mark.parametrize("key", [" ", "é", "a" * 256])
async def test_a_key_that_is_unfit_is_refused(key):
    with pytest.raises(InvalidRequest, match="Idempotency-Key must be"):
        await Answers().once(key, request(), Work())


async def test_over_http(serve):
    running = await serve()
    body: Any = {"items": [{"image": {"data": "AAAA", "height": 1, "width": 1}}]}

    async def post(**headers) -> httpx.Response:
        return await running.http.post("/v1/score", json=body, headers=headers)

    first = await post(**{"Idempotency-Key": "k", "X-Request-Id": "one"})
    second = await post(**{"Idempotency-Key": "k", "X-Request-Id": "two"})
    assert [first.status_code, second.status_code] == [200, 200]
    assert second.json()["results"] == first.json()["results"]
    assert second.json()["request_id"] == "two"
    assert running.service.metrics.totals.items == 1
    body["items"][0]["prompt"] = "another"
    refused = await post(**{"Idempotency-Key": "k"})
    assert (refused.status_code, refused.json()["reason"]) == (422, "KEY_REUSED")


async def test_our_client_sends_a_key_of_its_own_per_call(serve):
    running = await serve()
    image = [[[1, 2, 3]]]
    for url in (str(running.http.base_url), f"grpc://{running.grpc_target}"):
        async with AsyncRewardClient(url) as client:
            for _ in range(2):
                batch = await client.score([np.array(image, np.uint8)], ["a"])
                assert batch.valid.all()
    assert running.service.metrics.totals.items == 4
    assert len(running.service.answers) == 4


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
async def test_another_picture_of_the_same_size_is_noticed(size):
    answers, work = Answers(), Work()
    work.go.set()
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, size, np.uint8).tobytes() for _ in range(2))
    await answers.once("k", request(pixels=first), work)
    await answers.once("k", request(pixels=first), work)
    with pytest.raises(InvalidRequest) as caught:
        await answers.once("k", request(pixels=second), work)
    assert caught.value.reason is Reason.KEY_REUSED
    black = np.zeros(size // 3 * 3, np.uint8)
    await answers.once("black", request(pixels=black.tobytes()), work)
    for channel in range(3):
        pixels = black.reshape(-1, 3).copy()
        pixels[:, channel] = 1
        with pytest.raises(InvalidRequest):
            await answers.once("black", request(pixels=pixels.tobytes()), work)
    assert work.runs == 2
