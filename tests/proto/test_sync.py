"""The blocking forms, and clients that outlive event loops and processes."""

import asyncio
import concurrent.futures
import gc
import multiprocessing
import threading
import time

import numpy as np
import pytest

from reward_api.client import AsyncRewardClient
from reward_api.errors import InvalidRequest, ItemsFailed, Reason, error_for
from reward_api.sync import RewardClient, RewardSuite
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore

BATCH = np.random.default_rng(0).integers(0, 256, (6, 16, 8, 3), np.uint8)
PROMPTS = [""] * 6
EXPECTED = BATCH.reshape(6, -1).mean(1) / 255


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_score_metadata_and_readiness(service, wire):
    with RewardClient(service.urls[wire]) as client:
        client.wait_ready(timeout_s=10)
        assert client.metadata().name == "fake"
        assert np.array_equal(client.score(BATCH, PROMPTS).values, EXPECTED)


def test_errors_arrive_in_the_caller():
    reward = FakeReward()
    with RewardClient(transport=reward) as client:
        with pytest.raises(ItemsFailed):
            client.score([b"not an image"], [""])
        reward.fail_next(error_for(Reason.SCHEMA, "scripted"))
        with pytest.raises(InvalidRequest):
            client.score(BATCH, PROMPTS)


def test_submit_returns_before_the_result():
    everyone = threading.Barrier(3)

    class Together(FakeReward):
        async def score(self, request, *, timeout_s):
            await asyncio.to_thread(everyone.wait, 10)
            return await super().score(request, timeout_s=timeout_s)

    with RewardClient(transport=Together()) as client:
        futures = [client.submit(BATCH, PROMPTS) for _ in range(2)]
        assert not any(future.done() for future in futures)
        everyone.wait(10)  # both calls are under way at the same time
        assert all(np.array_equal(f.result().values, EXPECTED) for f in futures)


def test_closing_ends_what_is_under_way_and_its_waiter_learns_it(recwarn):
    client = RewardClient(transport=FakeReward(delay_s=3600))
    future = client.submit(BATCH, PROMPTS)
    while not client.asynchronous._sessions:  # under way
        time.sleep(0.01)
    client.close()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=30)
    gc.collect()
    assert not [w for w in recwarn if "destroyed" in str(w.message)]


def test_float_images_may_change_after_submit():
    images = BATCH / 255
    with RewardClient(transport=FakeReward(delay_s=0.1)) as client:
        future = client.submit(images, PROMPTS)
        images[:] = 0
        assert np.array_equal(future.result().values, EXPECTED)


def test_threads_share_a_client(service):
    results = []
    with RewardClient(service.urls["http"]) as client:
        threads = [
            threading.Thread(target=lambda: results.append(client.score(BATCH, PROMPTS).values))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 8
    assert all(np.array_equal(values, EXPECTED) for values in results)


def test_a_closed_client_can_be_used_again(service):
    client = RewardClient(service.urls["http"])
    for _ in range(2):
        assert client.score(BATCH, PROMPTS).valid.all()
        client.close()
        client.close()


def test_a_client_may_be_used_inside_a_running_loop(service):
    async def main():
        with RewardClient(service.urls["http"]) as client:
            return client.score(BATCH, PROMPTS).values

    assert np.array_equal(asyncio.run(main()), EXPECTED)


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_an_asynchronous_client_survives_a_change_of_loop(service, wire):
    client = AsyncRewardClient(service.urls[wire])
    for _ in range(3):
        assert np.array_equal(asyncio.run(client.score(BATCH, PROMPTS)).values, EXPECTED)
    asyncio.run(client.close())
    assert client._sessions == []
    gc.collect()  # what was left open would warn now


def score_in_child(client, connection):
    try:
        connection.send(client.score(BATCH, PROMPTS).values)
    except RuntimeError as error:
        connection.send(str(error))
    client.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_client_survives_a_fork(service, wire):
    """As a DataLoader worker would: the parent has used the client, then both go on."""
    with RewardClient(service.urls[wire]) as client:
        client.score(BATCH, PROMPTS)
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=score_in_child, args=(client, there)
        )
        child.start()
        assert np.array_equal(client.score(BATCH, PROMPTS).values, EXPECTED)
        assert here.poll(20)
        answer = here.recv()
        assert "use http://" in answer if wire == "grpc" else np.array_equal(answer, EXPECTED)
        child.join(20)
        assert child.exitcode == 0
        here.close()
        there.close()


def test_suite():
    rewards = {
        "mean": RewardClient(transport=FakeReward()),
        "one": RewardClient(transport=FakeReward(lambda *_: ItemScore(value=1))),
    }
    with RewardSuite(rewards, {"mean": 2, "one": -0.5}) as suite:
        scores = suite.score(BATCH, PROMPTS)
        assert np.allclose(scores.values, 2 * EXPECTED - 0.5)
        assert np.array_equal(suite.submit(BATCH, PROMPTS).result().values, scores.values)
        assert list(suite.metadata()) == ["mean", "one"]
        suite.wait_ready(1)
