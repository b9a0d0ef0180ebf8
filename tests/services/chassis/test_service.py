"""RewardService in-process: batching, isolation, deadlines, cancellation, bounds, device loss."""

import asyncio
import gc

import pytest
from conftest import PIXELS, assert_nothing_left, hold_device, packed_request, queued, raw_request
from fake_scorer import FakeScorer, FakeSettings

from reward_api.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Reason,
    Unavailable,
)
from reward_api.wire.messages import Image, Item, PackedImages, ScoreRequest
from reward_services.chassis.scorer import Sample
from reward_services.chassis.service import RewardService, State
from reward_services.chassis.settings import ServiceSettings


def _reasons(response):
    return [result.error and result.error.reason for result in response.results]


async def test_scores_are_in_order_with_ids_and_revision(start):
    service, _ = await start()
    response = await service.score(packed_request("a", "bb", "ccc", request_id="mine"))
    expected = [PIXELS[i].mean() + (i + 1) / 1000 for i in range(3)]
    assert [r.score.value for r in response.results] == expected
    assert [r.id for r in response.results] == ["0", "1", "2"]
    assert (response.model, response.revision, response.request_id) == ("fake", "r1", "mine")
    assert response.batch_sizes == [3]
    assert all(r.score.details is None for r in response.results)
    assert response.timing.total_ms >= response.timing.inference_ms
    assert all(len(str(ms).partition(".")[2]) <= 3 for ms in response.timing.model_dump().values())
    assert_nothing_left(service)


async def test_details_come_only_when_asked_for(start):
    service, _ = await start()
    response = await service.score(packed_request("a", include_details=True))
    assert response.results[0].score.details == {"shape": [8, 6, 3], "metadata": {}}


async def test_items_of_many_callers_share_batches(start):
    service, scorer = await start()
    held = await hold_device(service, scorer)
    callers = [asyncio.create_task(service.score(raw_request(i, str(i)))) for i in range(8)]
    await queued(service, 8)
    scorer.gate.set()
    responses = await asyncio.gather(held, *callers)
    assert [len(batch) for batch in scorer.batches] == [1, 8]
    assert [r.batch_sizes for r in responses] == [[1]] + [[8]] * 8
    for i, response in enumerate(responses[1:]):
        assert response.results[0].score.value == PIXELS[i].mean() + 0.001


async def test_a_request_larger_than_a_batch_is_split_and_reassembled(start):
    service, scorer = await start(max_batch_items=4)
    response = await service.score(packed_request(*["p"] * 10))
    assert [len(batch) for batch in scorer.batches] == [4, 4, 2]
    assert [r.score.value for r in response.results] == [
        PIXELS[i].mean() + 0.001 for i in range(10)
    ]
    assert response.batch_sizes == [4, 4, 2]


async def test_a_poisoned_batch_mate_costs_the_others_nothing(start):
    service, scorer = await start()
    clean = [await service.score(raw_request(i, "p")) for i in range(32)]
    held = await hold_device(service, scorer)
    bad = ScoreRequest(items=[Item(prompt="p", image=Image(data=b"\x89PNG\r\n\x1a\nno"))])
    callers = [
        asyncio.create_task(
            service.score(bad if i == 13 else raw_request(i, "boom" if i == 5 else "p"))
        )
        for i in range(32)
    ]
    await queued(service, 31)
    scorer.gate.set()
    responses = await asyncio.gather(*callers)
    await held
    for i, (response, reference) in enumerate(zip(responses, clean, strict=True)):
        if i == 13:
            assert _reasons(response) == [Reason.IMAGE_DECODE]
        elif i == 5:
            assert _reasons(response) == [Reason.MODEL_ERROR]
        else:
            assert response.results == reference.results
    assert_nothing_left(service)


async def test_each_bad_item_has_its_own_error_and_neighbours_their_scores(start):
    service, _ = await start(
        FakeSettings(needs_prompt=True),
        max_prompt_bytes=100,
        max_metadata_bytes=100,
        max_metadata_depth=3,
        max_image_side=50,
    )
    good = Image(data=PIXELS[0].tobytes(), height=8, width=6)
    deep = {"a": {"b": {"c": {"d": 1}}}}
    cases = [
        (Item(prompt="ok", image=good), None),
        (Item(prompt="  ", image=good), Reason.MISSING_PROMPT),
        (Item(prompt="p" * 101, image=good), Reason.INVALID_REQUEST),
        (Item(prompt="\ud800", image=good), Reason.INVALID_REQUEST),
        (Item(prompt="ok"), Reason.IMAGE_DECODE),
        (Item(prompt="ok", image=Image(data=b"")), Reason.IMAGE_DECODE),
        (Item(prompt="ok", image=Image(data=b"GIF89a")), Reason.IMAGE_DECODE),
        (Item(prompt="ok", image=Image(data=b"x" * 10, height=8, width=6)), Reason.IMAGE_SHAPE),
        (
            Item(prompt="ok", image=Image(data=b"x" * 180, height=60, width=1)),
            Reason.IMAGE_TOO_LARGE,
        ),
        (Item(prompt="ok", image=good, metadata=deep), Reason.SCHEMA),
        (Item(prompt="ok", image=good, metadata={"a": "x" * 200}), Reason.SCHEMA),
        (Item(prompt="NUL \0 emoji \U0001f984 rtl \u05d0", image=good), None),
        (Item(prompt="ok", image=Image(data=b"\7", height=1, width=1, channels=1)), None),
        (Item(prompt="nan", image=good), Reason.NON_FINITE_SCORE),
        (Item(prompt="failure", image=good), Reason.JUDGE_PARSE),
    ]
    response = await service.score(ScoreRequest(items=[item for item, _ in cases]))
    assert _reasons(response) == [reason for _, reason in cases]
    assert response.results[12].score.scores["mean"] == 7.0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ScoreRequest(items=[]), Reason.INVALID_REQUEST),
        (raw_request(0, model="other"), Reason.MODEL_NOT_FOUND),
        (raw_request(0, request_id="two\nlines"), Reason.INVALID_REQUEST),
        (packed_request(*["p"] * 9), Reason.REQUEST_TOO_LARGE),
        (
            ScoreRequest(
                items=[Item(), Item()],
                packed_images=PackedImages(data=bytes(3), count=1, height=1, width=1),
            ),
            Reason.COUNT_MISMATCH,
        ),
        (
            ScoreRequest(
                items=[Item(image=Image(data=b"x"))],
                packed_images=PackedImages(data=bytes(3), count=1, height=1, width=1),
            ),
            Reason.COUNT_MISMATCH,
        ),
        (
            ScoreRequest(
                items=[Item()],
                packed_images=PackedImages(data=bytes(5), count=1, height=1, width=2),
            ),
            Reason.IMAGE_SHAPE,
        ),
    ],
)
async def test_requests_that_are_wrong_as_a_whole(start, request_, reason):
    service, scorer = await start(max_request_items=8)
    with pytest.raises(InvalidRequest) as caught:
        await service.score(request_)
    assert caught.value.reason is reason
    assert scorer.batches == []
    assert_nothing_left(service)


@pytest.mark.parametrize("limit", [{"max_image_side": 3}, {"max_image_bytes": 23}])
async def test_packed_images_have_the_same_limits(start, limit):
    service, _ = await start(**limit)
    packed = PackedImages(data=bytes(4 * 2 * 3), count=1, height=2, width=4)
    response = await service.score(ScoreRequest(items=[Item(prompt="p")], packed_images=packed))
    assert _reasons(response) == [Reason.IMAGE_TOO_LARGE]


async def test_deadline_fires_while_queued_and_the_device_is_busy(start):
    service, scorer = await start()
    held = await hold_device(service, scorer)
    with pytest.raises(DeadlineExceeded):
        await service.score(raw_request(1, "late"), timeout_s=0.05)
    assert not scorer.gate.is_set()
    assert len(service._batcher.queue) == 0
    scorer.gate.set()
    assert _reasons(await held) == [None]
    await service.score(raw_request(2, "next"))
    assert scorer.batches == [["first"], ["next"]]


async def test_deadline_fires_while_running_and_the_late_outcome_is_dropped(start):
    service, scorer = await start()
    scorer.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await service.score(raw_request(1, "slow"), timeout_s=0.05)
    scorer.gate.set()
    assert _reasons(await service.score(raw_request(2, "next"))) == [None]
    assert_nothing_left(service)


async def test_deadline_that_is_over_on_arrival(start):
    service, scorer = await start()
    with pytest.raises(DeadlineExceeded):
        await service.score(raw_request(1), timeout_s=-1.0)
    assert scorer.batches == []


async def test_deadline_that_the_queue_cannot_meet_is_refused_at_once(start):
    service, scorer = await start(FakeSettings(delay_ms=100), max_batch_items=1)
    await service.score(raw_request(0))
    held = await hold_device(service, scorer)
    waiting = [asyncio.create_task(service.score(raw_request(i))) for i in range(20)]
    await queued(service, 20)
    with pytest.raises(Overloaded) as caught:
        await service.score(raw_request(1), timeout_s=0.5)
    assert caught.value.reason is Reason.DEADLINE_UNREACHABLE
    assert (caught.value.retry_after_s or 0) > 1.0
    # A higher priority does not wait behind them.
    urgent = asyncio.create_task(service.score(raw_request(1, "urgent", priority=1), timeout_s=30))
    await queued(service, 21)
    for task in waiting:
        task.cancel()
    scorer.gate.set()
    await asyncio.gather(held, urgent)


async def test_cancelled_items_leave_the_queue_at_once(start):
    service, scorer = await start()
    held = await hold_device(service, scorer)
    gone = asyncio.create_task(service.score(packed_request("gone", "gone")))
    kept = asyncio.create_task(service.score(raw_request(3, "kept")))
    await queued(service, 3)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(service._batcher.queue) == 1
    scorer.gate.set()
    await asyncio.gather(held, kept)
    assert scorer.batches == [["first"], ["kept"]]
    assert b"reward_cancelled_items_total 2.0" in service.metrics.exposition()
    assert_nothing_left(service)


async def test_priorities(start):
    service, scorer = await start(max_batch_items=2)
    held = await hold_device(service, scorer)
    tasks = []
    for i, priority in enumerate((3, 3, 2, 0, 1, 1)):
        tasks.append(
            asyncio.create_task(service.score(raw_request(i, f"p{priority}", priority=priority)))
        )
        await queued(service, i + 1)
    scorer.gate.set()
    await asyncio.gather(held, *tasks)
    assert scorer.batches == [["first"], ["p1", "p1"], ["p2", "p0"], ["p3", "p3"]]


async def test_the_queue_is_bounded_by_items(start):
    service, scorer = await start(max_queue_items=4)
    held = await hold_device(service, scorer)
    waiting = asyncio.create_task(service.score(packed_request("a", "b", "c")))
    await queued(service, 3)
    with pytest.raises(Overloaded) as caught:
        await service.score(raw_request(1))
    assert caught.value.reason is Reason.QUEUE_FULL
    assert (caught.value.retry_after_s or 0) > 0
    scorer.gate.set()
    await asyncio.gather(held, waiting)
    await service.score(raw_request(1))
    assert b'reward_rejections_total{reason="QUEUE_FULL"} 1.0' in service.metrics.exposition()


async def test_out_of_memory_lowers_the_batch_size_for_a_while(start):
    service, scorer = await start(oom_cap_s=600.0)
    assert _reasons(await service.score(packed_request(*["oom>4"] * 8))) == [None] * 8
    scorer.batches.clear()
    await service.score(packed_request(*["fine"] * 8))
    assert [len(batch) for batch in scorer.batches] == [4, 4]


async def test_the_batch_size_recovers(start):
    service, scorer = await start(oom_cap_s=0.0)
    await service.score(packed_request(*["oom>4"] * 8))
    await service.score(raw_request(0))
    scorer.batches.clear()
    await service.score(packed_request(*["fine"] * 8))
    assert [len(batch) for batch in scorer.batches] == [8]


@pytest.mark.parametrize("prompt", ["lost", "kill"])
async def test_losing_the_device_fails_all_that_wait(start, prompt, caplog):
    service, scorer = await start(max_batch_items=1)
    held = await hold_device(service, scorer, prompt)
    waiting = [asyncio.create_task(service.score(raw_request(i))) for i in range(3)]
    await queued(service, 3)
    scorer.gate.set()
    results = await asyncio.gather(held, *waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 4
    assert {getattr(result, "reason", None) for result in results} == {Reason.DEVICE_FAILED}
    assert service.state is State.FAILED
    assert service.device_lost.done()
    with pytest.raises(Unavailable):
        await service.score(raw_request(0))
    gc.collect()


async def test_work_is_refused_until_warm_and_after_draining(tmp_path):
    scorer = FakeScorer(FakeSettings(stages=str(tmp_path)))
    service = RewardService("fake", scorer, ServiceSettings(device="cpu"))
    loading = asyncio.create_task(service.start())
    for state, ended_by in ((State.LOADING, "loaded"), (State.WARMING, "warm")):
        while service.state is not state:
            await asyncio.sleep(0.005)
        with pytest.raises(Unavailable) as caught:
            await service.score(raw_request(0))
        assert caught.value.reason is Reason.LOADING
        (tmp_path / ended_by).touch()
    await loading
    assert service.state is State.READY
    assert scorer.batches == [["warm-up"]]
    service.announce_drain()
    assert _reasons(await service.score(raw_request(0))) == [None]
    service.refuse_new_calls()
    with pytest.raises(Unavailable) as caught:
        await service.score(raw_request(0))
    assert caught.value.reason is Reason.DRAINING
    service.close()


async def test_what_load_raises_reaches_the_starter():
    scorer = FakeScorer(FakeSettings(load_error="no weights"))
    service = RewardService("fake", scorer, ServiceSettings(device="cpu"))
    with pytest.raises(FileNotFoundError, match="no weights"):
        await service.start()
    service.close()


class Preparing(FakeScorer):
    """Counts in `prepare`, and sees what it made again in `score`."""

    def prepare(self, sample: Sample):
        if sample.prompt == "crash":
            raise KeyError("x")
        return sample.prompt.upper()

    def _outcome(self, sample: Sample):
        assert sample.prepared == sample.prompt.upper()
        return super()._outcome(sample)


async def test_prepare_runs_for_every_item_and_its_failures_are_the_items():
    service = RewardService(
        "fake", Preparing(FakeSettings()), ServiceSettings(device="cpu", prepare_threads=3)
    )
    async with service:
        response = await service.score(packed_request("a", "crash", "c", "d", "e"))
        assert _reasons(response) == [None, Reason.MODEL_ERROR, None, None, None]
        values = [r.score.value for r in response.results if r.score]
        assert values == [PIXELS[i].mean() + 0.001 for i in (0, 2, 3, 4)]


async def test_metadata_tells_limits_settings_and_ranges(start):
    service, _ = await start(FakeSettings(delay_ms=3), max_request_items=77)
    metadata = service.metadata()
    assert metadata.limits["max_request_items"] == 77
    assert metadata.settings["delay_ms"] == "3"
    assert (metadata.name, metadata.revision, metadata.device) == ("fake", "r1", "cpu")
    assert [s.name for s in metadata.sub_scores] == ["mean", "length"]
