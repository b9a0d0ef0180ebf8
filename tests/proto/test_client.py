"""AsyncRewardClient: from the caller's lists to calls and back."""

import asyncio
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from reward_api.client import AsyncRewardClient
from reward_api.errors import (
    AuthenticationFailed,
    DeadlineExceeded,
    InvalidRequest,
    ItemFailure,
    ItemsFailed,
    Reason,
    Unavailable,
    error_for,
)
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemError, ItemResult, ItemScore, Timing

BATCH = np.random.default_rng(0).integers(0, 256, (12, 16, 8, 3), np.uint8)
PROMPTS = [f"prompt {i}" for i in range(12)]
EXPECTED = BATCH.reshape(12, -1).mean(1) / 255


def png(pixels) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def by_prompt(image, prompt, metadata):
    """The prompt says what happens: "fail" or a number."""
    if prompt == "fail":
        raise ItemFailure(Reason.PROMPT_TARGET, "scripted")
    return float(prompt)


async def score(
    reward, images: Any = BATCH, prompts: Any = PROMPTS, metadata=None, *, client=None, **options
):
    async with AsyncRewardClient(transport=reward, **(client or {})) as made:
        return await made.score(images, prompts, metadata, **options)


def sizes(reward):
    return [len(request.items) for request in reward.requests]


@pytest.mark.parametrize("wire", ["http", "grpc", "in-process"])
@pytest.mark.parametrize("form", ["packed", "list", "tensor", "png", "bytes"])
async def test_every_wire_gives_the_same_scores(service, wire, form):
    images = {
        "packed": BATCH,
        "list": list(BATCH),
        "tensor": torch.from_numpy(BATCH).permute(0, 3, 1, 2) / 255,
        "png": BATCH,
        "bytes": [png(image) for image in BATCH],
    }[form]
    transport = {"transport": service.reward} if wire == "in-process" else {}
    urls = [service.urls[wire]] if wire != "in-process" else []
    encoding = "png" if form == "png" else "raw"
    async with AsyncRewardClient(urls, **transport, encoding=encoding, chunk_items=5) as client:
        batch = await client.score(images, PROMPTS)
    assert np.array_equal(batch.values, EXPECTED)
    assert batch.valid.all()
    assert batch.values.dtype == np.float64
    assert batch.model == "fake"
    assert batch.revisions == {"fake-1"}
    assert batch.versions == {"test"}
    assert sorted(sizes(service.reward)) == [2, 5, 5]


async def test_prompts_metadata_and_details_reach_their_item():
    def echo(image, prompt, metadata):
        return ItemScore(
            value=image.mean(), scores={"n": metadata.get("n", -1)}, details={"prompt": prompt}
        )

    reward = FakeReward(echo)
    metadata = [{"n": i} if i % 2 else None for i in range(12)]
    options = {"ids": [f"id {i}" for i in range(12)], "include_details": True, "priority": 1}
    batch = await score(reward, metadata=metadata, client={"chunk_items": 5}, **options)
    assert batch.details == [{"prompt": prompt} for prompt in PROMPTS]
    assert batch.scores["n"].tolist() == [i if i % 2 else -1 for i in range(12)]
    sent = [item.id for request in reward.requests for item in request.items]
    assert sorted(sent) == sorted(options["ids"])
    assert {(r.priority, r.include_details) for r in reward.requests} == {(1, True)}
    assert len({r.request_id for r in reward.requests}) == 3
    assert (await score(reward)).details == [None] * 12


async def test_chunks_are_bounded_by_bytes():
    reward = FakeReward()
    one = BATCH[0].nbytes
    await score(reward, client={"chunk_bytes": 5 * one})
    assert sizes(reward) == [5, 5, 2]
    reward.requests.clear()
    await score(reward, client={"chunk_bytes": 1})
    assert sizes(reward) == [1] * 12
    reward.requests.clear()
    mixed = [np.zeros((2 * i, 8, 3), np.uint8) for i in range(1, 7)]
    await score(reward, mixed, PROMPTS[:6], client={"chunk_bytes": 12 * 24})
    assert sizes(reward) == [3, 1, 1, 1]


async def test_chunks_are_concurrent_up_to_max_calls():
    running = peak = 0

    class Counting(FakeReward):
        async def score(self, request, *, timeout_s):
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.02)
            running -= 1
            return await super().score(request, timeout_s=timeout_s)

    await score(Counting(), client={"chunk_items": 1, "max_calls": 3})
    assert peak == 3


async def test_a_batch_is_spread_over_replicas(serve):
    services = [serve(FakeReward(delay_s=0.2)) for _ in range(2)]
    async with AsyncRewardClient([s.urls["http"] for s in services]) as client:
        await client.score(BATCH, PROMPTS)
    assert [sizes(s.reward) for s in services] == [[6], [6]]


async def test_a_request_too_large_is_split():
    class Small(FakeReward):
        async def score(self, request, *, timeout_s):
            if len(request.items) > 3:
                raise error_for(Reason.REQUEST_TOO_LARGE, "at most 3 items")
            return await super().score(request, timeout_s=timeout_s)

    reward = Small()
    assert np.array_equal((await score(reward)).values, EXPECTED)
    assert sizes(reward) == [3] * 4
    reward.fail_next(error_for(Reason.REQUEST_TOO_LARGE, "no item fits"), times=100)
    with pytest.raises(InvalidRequest, match="no item fits"):
        await score(reward, BATCH[:1], PROMPTS[:1])


async def test_nothing_to_score():
    reward = FakeReward()
    for images in ([], np.zeros((0, 8, 8, 3), np.uint8), torch.zeros(0, 3, 8, 8)):
        batch = await score(reward, images, [])
        assert len(batch) == 0
    assert reward.requests == []


# Failures


async def test_on_error_raise():
    prompts = ["1", "fail", "3", "fail"]
    with pytest.raises(ItemsFailed, match="2 of 4 items have no score; item 1: scripted") as caught:
        await score(FakeReward(by_prompt), BATCH[:4], prompts)
    assert list(caught.value.failures) == [1, 3]


async def test_on_error_nan():
    prompts = ["1", "fail", "3", "4"]
    batch = await score(FakeReward(by_prompt), BATCH[:4], prompts, on_error="nan")
    assert np.array_equal(batch.values, [1, np.nan, 3, 4], equal_nan=True)
    assert batch.valid.tolist() == [True, False, True, True]
    assert batch.errors[1].reason is Reason.PROMPT_TARGET


async def test_on_error_callable():
    seen = []
    client = {"on_error": seen.append}
    batch = await score(FakeReward(by_prompt), BATCH[:2], ["1", "fail"], client=client)
    assert seen == [batch]
    await score(FakeReward(by_prompt), BATCH[:2], ["1", "2"], client=client)
    assert len(seen) == 1

    def refuse(batch):
        raise LookupError(str(batch.errors[1]))

    with pytest.raises(LookupError, match="PROMPT_TARGET: scripted"):
        await score(FakeReward(by_prompt), BATCH[:2], ["1", "fail"], on_error=refuse)


async def test_a_bad_image_is_not_sent_and_its_neighbours_are():
    images = np.full((5, 4, 4, 3), 0.5)
    images[2, 0, 0, 0] = math.nan
    reward = FakeReward()
    batch = await score(reward, images, PROMPTS[:5], on_error="nan")
    assert batch.valid.tolist() == [True, True, False, True, True]
    assert batch.errors[2].reason is Reason.IMAGE_NON_FINITE
    assert [item.id for item in reward.requests[0].items] == ["0", "1", "3", "4"]


async def test_scores_that_are_not_finite_are_failures(service):
    def broken(image, prompt, metadata):
        return ItemScore(value=math.inf if prompt == "inf" else 1.0, scores={"sub": 1.0})

    service.reward._score = broken
    async with AsyncRewardClient(service.urls["grpc"], on_error="nan") as client:
        batch = await client.score(BATCH[:2], ["inf", "fine"])
    assert batch.errors[0].reason is Reason.NON_FINITE_SCORE
    assert batch.valid.tolist() == [False, True]


async def test_a_dead_service_with_on_error_nan_makes_items_invalid():
    reward = FakeReward()
    reward.fail_next(error_for(Reason.DEVICE_FAILED, "device lost"), times=100)
    batch = await score(reward, on_error="nan", timeout_s=2.0)
    assert not batch.valid.any()
    assert {e.reason for e in batch.errors.values()} == {Reason.DEVICE_FAILED}
    with pytest.raises(Unavailable, match="device lost"):
        await score(reward, timeout_s=2.0)


@pytest.mark.parametrize("reason", [Reason.AUTH, Reason.INVALID_REQUEST, Reason.MODEL_NOT_FOUND])
async def test_mistakes_of_the_caller_are_raised_even_so(reason):
    reward = FakeReward()
    reward.fail_next(error_for(reason, "scripted"), times=100)
    with pytest.raises((InvalidRequest, AuthenticationFailed)):
        await score(reward, on_error="nan", client={"chunk_items": 2})


async def test_one_failing_call_ends_the_others():
    class HalfBad(FakeReward):
        num_cancelled = 0

        async def score(self, request, *, timeout_s):
            if request.items[0].id == "0":
                raise error_for(Reason.SCHEMA, "scripted")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
            raise AssertionError

    reward = HalfBad()
    with pytest.raises(InvalidRequest):
        await score(reward, client={"chunk_items": 4})
    assert reward.num_cancelled == 2


async def test_items_with_a_retryable_error_are_sent_once_more():
    class Moody(FakeReward):
        async def score(self, request, *, timeout_s):
            response = await super().score(request, timeout_s=timeout_s)
            failure = ItemError.of(ItemFailure(Reason.JUDGE_PARSE, "no number in the answer"))
            results = [
                ItemResult(id=r.id, error=failure)
                if r.id == "5" or (len(self.requests) == 1 and r.id in ("2", "7"))
                else r
                for r in response.results
            ]
            return response.model_copy(update={"results": results})

    reward = Moody()
    batch = await score(reward, on_error="nan")
    assert sizes(reward) == [12, 3]
    assert list(batch.errors) == [5]
    assert batch.valid.sum() == 11
    assert np.array_equal(np.delete(batch.values, 5), np.delete(EXPECTED, 5))


async def test_a_failed_second_attempt_keeps_the_first_errors():
    class Judge(FakeReward):
        async def score(self, request, *, timeout_s):
            if self.requests:
                raise error_for(Reason.SCHEMA, "second call")
            response = await super().score(request, timeout_s=timeout_s)
            failure = ItemError.of(ItemFailure(Reason.JUDGE_PARSE, "first call"))
            results = [ItemResult(id=r.id, error=failure) for r in response.results]
            return response.model_copy(update={"results": results})

    batch = await score(Judge(), on_error="nan")
    assert {e.message for e in batch.errors.values()} == {"first call"}


async def test_the_total_deadline_counts_waiting_for_a_turn():
    with pytest.raises(DeadlineExceeded):
        await score(
            FakeReward(delay_s=0.2), client={"max_calls": 1, "chunk_items": 1}, timeout_s=0.3
        )


# What the caller gives


@pytest.mark.parametrize(
    ("arguments", "reason", "message"),
    [
        ((BATCH, PROMPTS[:3]), Reason.COUNT_MISMATCH, "3 prompts for 12 images"),
        ((BATCH[:1], "a prompt"), Reason.COUNT_MISMATCH, "must be a list"),
        ((BATCH, PROMPTS, [{}]), Reason.COUNT_MISMATCH, "1 metadata for 12"),
        ((BATCH[:1], ["x"], {"a": 1}), Reason.COUNT_MISMATCH, "must be a list"),
        ((BATCH[:1], [None]), Reason.INVALID_REQUEST, "prompts[0] is a NoneType"),
        ((BATCH[:1], ["\ud800"]), Reason.INVALID_REQUEST, "not valid Unicode"),
        ((BATCH[:1], ["x"], ["tag"]), Reason.SCHEMA, "metadata[0] is a str"),
        ((BATCH[:1], ["x"], [{"a": math.nan}]), Reason.SCHEMA, "metadata[0]['a'] is nan"),
        ((BATCH[:1], ["x"], [{"a": 2**60}]), Reason.SCHEMA, "cannot carry"),
        ((BATCH[:1], ["x"], [{"a": {1}}]), Reason.SCHEMA, "not a JSON value"),
        ((BATCH[:1], ["x"], [{1: 1}]), Reason.INVALID_REQUEST, "a key of metadata[0]"),
    ],
)
async def test_wrong_arguments(arguments, reason, message):
    reward = FakeReward()
    with pytest.raises(InvalidRequest) as caught:
        await score(reward, *arguments)
    assert caught.value.reason is reason
    assert message in str(caught.value)
    assert reward.requests == []


async def test_deep_metadata_is_refused():
    deep = {}
    for _ in range(20):
        deep = {"a": [deep]}
    with pytest.raises(InvalidRequest, match="nested deeper than 16"):
        await score(FakeReward(), BATCH[:1], ["x"], [deep])


async def test_metadata_may_hold_numpy_numbers_and_tuples():
    reward = FakeReward()
    metadata = [{"count": np.int64(3), "box": (np.float32(0.5), 1), "ok": np.bool_(True)}]
    await score(reward, BATCH[:1], ["x"], metadata)
    assert reward.requests[0].items[0].metadata == {"count": 3, "box": [0.5, 1], "ok": True}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"urls": "http://a", "transport": FakeReward()},
        {"urls": "a:8101"},
        {"transport": FakeReward(), "on_error": "zero"},
        {"urls": "http://a", "token": "two words"},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=r".+"):
        AsyncRewardClient(**options)


async def test_the_model_is_named_in_the_request():
    reward = FakeReward()
    await score(reward, client={"model": "ocr"})
    assert reward.requests[0].model == "ocr"


async def test_timings_are_the_slowest_of_the_calls():
    class Timed(FakeReward):
        async def score(self, request, *, timeout_s):
            response = await super().score(request, timeout_s=timeout_s)
            first = float(request.items[0].id)
            timing = Timing(queue_ms=first, inference_ms=10 - first)
            return response.model_copy(update={"timing": timing})

    batch = await score(Timed(), client={"chunk_items": 4})
    assert batch.timing == Timing(queue_ms=8, inference_ms=10)
    assert batch.wall_s > 0


# Readiness


@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_wait_ready(service, wire):
    service.reward.is_ready = False
    async with AsyncRewardClient(service.urls[wire]) as client:
        with pytest.raises(Unavailable, match="not ready"):
            await client.wait_ready(timeout_s=1.0)
        asyncio.get_running_loop().call_later(0.2, setattr, service.reward, "is_ready", True)
        await client.wait_ready(timeout_s=10)
        assert (await client.metadata()).name == "fake"


async def test_wait_ready_with_the_fake_reward():
    reward = FakeReward()
    reward.is_ready = False
    with pytest.raises(Unavailable, match="not ready"):
        await AsyncRewardClient(transport=reward).wait_ready(timeout_s=0.1)


async def test_wait_ready_does_not_wait_for_a_right_token(serve):
    service = serve(token="secret")
    async with AsyncRewardClient(service.urls["grpc"]) as client:
        with pytest.raises(AuthenticationFailed):
            await client.wait_ready(timeout_s=60)
