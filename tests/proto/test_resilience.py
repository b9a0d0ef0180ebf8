"""The parts that decide about retries, one by one."""

import math

import pytest

from reward_api.resilience import Breaker, Budget, Latencies, backoff_s


def test_breaker_opens_probes_and_closes():
    breaker = Breaker()
    for _ in range(5):
        assert not breaker.start()
        breaker.failure(now=10.0)
    assert breaker.is_open
    assert breaker.free_at(10.0) == 11.0
    breaker.failure(now=10.5)  # was under way when it opened
    assert breaker.free_at(10.5) == 11.0
    assert breaker.start()
    assert breaker.free_at(11.0) > 11.0  # one probe at a time
    breaker.failure(now=11.0)
    breaker.end_probe()
    assert breaker.free_at(11.0) == 13.0
    assert breaker.start()
    breaker.end_probe()  # cancelled: nothing was learnt
    assert breaker.free_at(13.0) == 13.0
    for _ in range(10):
        breaker.failure(now=breaker.free_at(0.0))
    assert breaker.free_at(0.0) <= 13 + 4 + 8 + 15 * 8
    breaker.success()
    assert breaker.free_at(0.0) == 0.0


def test_budget():
    budget = Budget(0.1, burst=2, per_s=1)
    assert [budget.take(5.0) for _ in range(3)] == [0, 0, 1]
    assert budget.take(5.5) == pytest.approx(0.5)
    assert budget.take(6.1) == 0
    for _ in range(10):
        budget.note_call()
    assert budget.take(6.1) == 0
    assert Budget(0.05, burst=0.5).take(1.0) == math.inf


def test_latencies():
    latencies = Latencies()
    for i in range(19):
        latencies.add(i / 10)
    assert latencies.hedge_delay_s() is None
    latencies.add(1.9)
    assert latencies.hedge_delay_s() == pytest.approx(3.6)


def test_backoff_has_full_jitter_and_an_end():
    for attempt in (0, 3, 100, 10_000):
        pauses = [backoff_s(attempt) for _ in range(50)]
        assert 0 <= min(pauses) < max(pauses) <= min(0.1 * 2 ** min(attempt, 20), 5.0)
