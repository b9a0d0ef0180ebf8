"""Routing, retries, breakers and hedges over scripted replicas, then over real processes."""

import asyncio
import math
import time

import numpy as np
import pytest

from reward_api.client import AsyncRewardClient
from reward_api.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Reason,
    ServerFault,
    Unavailable,
    error_for,
)
from reward_api.pool import Pool
from reward_api.testing import FakeReward
from reward_api.transport.base import Credentials, parse_url
from reward_api.wire.messages import Image, Item, ScoreRequest

PICTURE = Image(data=bytes(12), height=2, width=2)


def request(num_items=1):
    return ScoreRequest(items=[Item(id=str(i), image=PICTURE) for i in range(num_items)])


def pool_of(*replicas, attempt_timeout_s=5.0):
    return Pool([], Credentials(), attempt_timeout_s=attempt_timeout_s, transports=replicas)


async def score(pool, timeout_s=10.0, num_items=1):
    deadline = asyncio.get_running_loop().time() + timeout_s
    return await pool.score(request(num_items), deadline=deadline)


def fault(reason, **options):
    return error_for(reason, "scripted", **options)


class SlowOnce(FakeReward):
    """Hangs for the calls in `slow`, by number."""

    def __init__(self, *slow):
        super().__init__()
        self.slow = slow
        self.num_cancelled = 0

    async def score(self, request, *, timeout_s):
        if len(self.requests) in self.slow:
            self.requests.append(request)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        return await super().score(request, timeout_s=timeout_s)


# Which replica


async def test_calls_made_together_are_spread_at_once():
    replicas = [FakeReward(delay_s=0.05) for _ in range(4)]
    pool = pool_of(*replicas)
    await asyncio.gather(*(score(pool) for _ in range(8)))
    assert [len(r.requests) for r in replicas] == [2, 2, 2, 2]


async def test_a_slow_replica_gets_little():
    fast, slow = FakeReward(delay_s=0.01), FakeReward(delay_s=0.3)
    pool = pool_of(fast, slow)

    async def caller():
        for _ in range(25):
            await score(pool)

    await asyncio.gather(*(caller() for _ in range(4)))
    assert len(fast.requests) + len(slow.requests) >= 100
    assert len(slow.requests) < 0.25 * len(fast.requests)


async def test_items_count_rather_than_calls():
    replicas = [FakeReward(delay_s=0.1), FakeReward(delay_s=0.1)]
    pool = pool_of(*replicas)
    large = asyncio.create_task(score(pool, num_items=10))
    await asyncio.sleep(0.01)
    await asyncio.gather(*(score(pool) for _ in range(5)))
    await large
    assert sorted(len(r.requests) for r in replicas) == [1, 5]


# Retries


async def test_a_failure_goes_to_the_other_replica_at_once():
    bad, good = FakeReward(), FakeReward()
    bad.fail_next(fault(Reason.CONNECTION), times=1000)
    pool = pool_of(bad, good)
    started = time.monotonic()
    for _ in range(5):
        assert (await score(pool)).results[0].score is not None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "reason", [r for r in Reason if not fault(r).retryable], ids=lambda r: r.value
)
async def test_errors_of_the_caller_are_not_retried(reason):
    replicas = [FakeReward(), FakeReward()]
    for replica in replicas:
        replica.fail_next(fault(reason), times=10)
    with pytest.raises(type(fault(reason))):
        await score(pool_of(*replicas))
    assert sum(len(r.requests) for r in replicas) == 1


async def test_an_internal_error_is_tried_once_more():
    replica = FakeReward()
    replica.fail_next(fault(Reason.INTERNAL), times=10)
    with pytest.raises(ServerFault):
        await score(pool_of(replica))
    assert len(replica.requests) == 2


async def test_the_hint_is_honoured():
    replica = FakeReward()
    replica.fail_next(fault(Reason.QUEUE_FULL, retry_after_s=0.3))
    started = time.monotonic()
    await score(pool_of(replica))
    assert 0.3 <= time.monotonic() - started < 5
    assert len(replica.requests) == 2


async def test_a_hint_holds_for_its_replica_only():
    busy, free = FakeReward(), FakeReward()
    busy.fail_next(fault(Reason.QUEUE_FULL, retry_after_s=30))
    pool = pool_of(busy, free)
    started = time.monotonic()
    for _ in range(6):
        await score(pool)
    assert time.monotonic() - started < 10
    assert len(busy.requests) <= 1


async def test_a_hint_beyond_the_deadline_ends_the_call_at_once():
    replica = FakeReward()
    replica.fail_next(fault(Reason.QUEUE_FULL, retry_after_s=60))
    started = time.monotonic()
    with pytest.raises(Overloaded):
        await score(pool_of(replica), timeout_s=5)
    assert time.monotonic() - started < 4


async def test_a_forbidden_retry_is_not_made_and_the_replica_stays():
    replica = FakeReward()
    replica.fail_next(fault(Reason.QUEUE_FULL, retry_after_s=math.inf))
    pool = pool_of(replica)
    with pytest.raises(Overloaded):
        await score(pool)
    assert (await score(pool)).results[0].score is not None


async def test_an_outage_is_ridden_out():
    replica = FakeReward()
    replica.fail_next(fault(Reason.CONNECTION), times=3)
    assert (await score(pool_of(replica))).results[0].score is not None
    assert len(replica.requests) == 4


async def test_retries_never_multiply_an_outage():
    replica = FakeReward()
    replica.fail_next(fault(Reason.CONNECTION), times=10**6)
    pool = pool_of(replica)
    outcomes = await asyncio.gather(
        *(score(pool, timeout_s=1.5) for _ in range(100)), return_exceptions=True
    )
    assert {type(o) for o in outcomes} == {Unavailable}
    # 100 calls; a tenth and the floor (10, and 2 a second) may be added.
    assert len(replica.requests) <= 100 + 10 + 10 + 2 * 2


async def test_wrong_answers_are_faults_of_the_service():
    class Shuffled(FakeReward):
        async def score(self, request, *, timeout_s):
            response = await super().score(request, timeout_s=timeout_s)
            return response.model_copy(update={"results": response.results[::-1]})

    class Short(FakeReward):
        async def score(self, request, *, timeout_s):
            response = await super().score(request, timeout_s=timeout_s)
            return response.model_copy(update={"results": response.results[1:]})

    for replica in (Shuffled(), Short()):
        with pytest.raises(ServerFault, match="results for 3 items"):
            await score(pool_of(replica), num_items=3)


# Deadlines


async def test_the_deadline_ends_everything():
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await score(pool_of(FakeReward(delay_s=60)), timeout_s=0.3)
    assert time.monotonic() - started < 10


async def test_an_attempt_has_a_deadline_of_its_own():
    hanging = SlowOnce(0)
    assert (await score(pool_of(hanging, attempt_timeout_s=0.2))).results[0].score is not None
    assert hanging.num_cancelled == 1


async def test_a_caller_in_a_hurry_does_not_open_the_breaker():
    replica = FakeReward(delay_s=0.2)
    pool = pool_of(replica)
    for _ in range(8):
        with pytest.raises(DeadlineExceeded):
            await score(pool, timeout_s=0.02)
    assert (await score(pool, timeout_s=2)).results[0].score is not None


async def test_a_cancelled_call_leaves_nothing_behind():
    replica = SlowOnce(0)
    pool = pool_of(replica)
    task = asyncio.create_task(score(pool))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert replica.num_cancelled == 1
    await asyncio.sleep(0)
    assert [e.outstanding for e in pool._endpoints()] == [0]


# Hedging


async def test_a_late_call_is_hedged():
    late, other = SlowOnce(*range(20, 100)), FakeReward()
    pool = pool_of(late, other, attempt_timeout_s=60)
    for _ in range(100):
        await asyncio.wait_for(score(pool), 30)
    assert 1 <= late.num_cancelled <= 7  # 5 % of the calls, and two to begin with


async def test_no_hedge_without_experience_or_a_second_replica():
    alone = SlowOnce(30)
    pool = pool_of(alone, attempt_timeout_s=0.3)
    for _ in range(32):
        await score(pool)
    assert len(alone.requests) == 33  # the one that hung was retried, after its own deadline


# Breaker


async def test_a_dead_replica_is_left_alone():
    dead, good = FakeReward(), FakeReward()
    dead.fail_next(fault(Reason.CONNECTION), times=10**6)
    pool = pool_of(dead, good)
    for _ in range(60):
        await score(pool)
    assert len(dead.requests) <= 6
    assert len(good.requests) == 60


async def test_readiness_closes_the_breaker():
    replica = FakeReward()
    replica.fail_next(fault(Reason.CONNECTION), times=5)
    pool = pool_of(replica)
    with pytest.raises(Unavailable, match="scripted"):
        await score(pool, timeout_s=0.9)  # the breaker stays open for a second
    (endpoint,) = pool._endpoints()
    while not endpoint.breaker.is_open:
        with pytest.raises(Unavailable, match="scripted"):
            await score(pool, timeout_s=0.2)
    assert len(replica.requests) == 5
    await pool.ready(deadline=math.inf)
    assert (await score(pool)).results[0].score is not None


async def test_a_replica_that_loads_is_the_reason_to_wait():
    loading = FakeReward()
    loading.is_ready = False
    nobody = parse_url("http://127.0.0.1:9")
    pool = Pool([nobody], Credentials(), attempt_timeout_s=5, transports=[loading])
    for order in (1, -1):
        pool._fixed = pool._fixed[::order]
        with pytest.raises(Unavailable, match="not ready") as raised:
            await pool.ready(deadline=math.inf)
        assert raised.value.reason is Reason.LOADING
    await pool.close()


# Names


async def test_every_address_of_a_name_is_a_replica(service):
    url = service.urls["http"].replace("http://", "http+dns://")
    pool = Pool([parse_url(url)], Credentials(), attempt_timeout_s=5)
    assert (await score(pool)).results[0].score is not None
    assert "http://127.0.0.1:" in " ".join(e.name for e in pool._endpoints())
    known = pool._endpoints()
    pool._resolve_at = 0.0
    await score(pool)
    assert pool._endpoints() == known  # the same connections
    await pool.close()


async def test_a_name_without_an_address():
    pool = Pool([parse_url("http+dns://nowhere.invalid:1")], Credentials(), attempt_timeout_s=5)
    with pytest.raises(Unavailable, match="no replica is known"):
        await score(pool, timeout_s=0.5)
    with pytest.raises(Unavailable, match="no replica is known"):
        await pool.ready(deadline=math.inf)


# Real processes

BATCH = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
EXPECTED = BATCH.reshape(64, -1).mean(1) / 255


@pytest.mark.system
@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_a_killed_replica_costs_no_score(spawn, wire):
    replicas = [spawn("--delay", "0.2"), spawn("--delay", "0.2")]
    client = AsyncRewardClient([r.urls[wire] for r in replicas], chunk_items=4)
    async with client:
        scoring = asyncio.create_task(client.score(BATCH, [""] * 64))
        await asyncio.sleep(0.1)
        replicas[0].kill()
        batch = await scoring
    assert np.allclose(batch.values, EXPECTED)
    assert batch.wall_s < 10


@pytest.mark.system
@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_a_frozen_replica_costs_an_attempt(spawn, wire):
    replicas = [spawn(), spawn()]
    client = AsyncRewardClient(
        [r.urls[wire] for r in replicas], chunk_items=8, attempt_timeout_s=0.5
    )
    async with client:
        await client.score(BATCH, [""] * 64)
        replicas[0].freeze()
        for _ in range(3):
            batch = await client.score(BATCH, [""] * 64)
            assert np.allclose(batch.values, EXPECTED)
            assert batch.wall_s < 5
        replicas[0].thaw()


@pytest.mark.system
@pytest.mark.parametrize("wire", ["http", "grpc"])
async def test_a_restarted_service_is_found_again(spawn, wire):
    replica = spawn()
    async with AsyncRewardClient(replica.urls[wire]) as client:
        await client.score(BATCH, [""] * 64)
        replica.kill()
        scoring = asyncio.create_task(client.score(BATCH, [""] * 64))
        flags = ("--http-port", str(replica.http_port), "--grpc-port", str(replica.grpc_port))
        await asyncio.to_thread(spawn, *flags)
        batch = await scoring
    assert np.allclose(batch.values, EXPECTED)


async def test_a_call_with_a_wrong_request_leaves_the_replica_in_use():
    replica = FakeReward()
    replica.fail_next(fault(Reason.SCHEMA), times=20)
    pool = pool_of(replica)
    for _ in range(20):
        with pytest.raises(InvalidRequest):
            await score(pool)
    assert (await score(pool)).results[0].score is not None
