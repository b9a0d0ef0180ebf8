"""Threads of libraries: one per thread of the pool, the model's own number on the device thread; batches of
a scorer that waits elsewhere, side by side."""

import asyncio
import threading

import numpy as np
import torch
from conftest import raw_request
from fake_scorer import FakeScorer, FakeSettings

from reward_api.wire.messages import ItemScore
from reward_services.chassis.service import RewardService
from reward_services.chassis.settings import ServiceSettings
from reward_services.chassis.threads import bound_libraries


class Counting(FakeScorer):
    """Tells torch's number of threads where an item is prepared and where it is scored."""

    def load(self, device):
        super().load(device)
        torch.set_num_threads(3)  # what a machine of three cores has

    def prepare(self, sample):
        # what HPSv2 and CLIPScore do: a team of OpenMP threads, were there more than one
        planes = torch.from_numpy(np.ones((1, 3, 64, 64), np.float32))
        torch.nn.functional.interpolate(planes, size=(32, 32), mode="bicubic", antialias=True)
        return torch.get_num_threads()

    def score(self, batch):
        on_device = torch.get_num_threads()
        return [ItemScore(value=s.prepared, scores={"device": on_device}) for s in batch]


async def test_the_pool_runs_one_thread_of_torch_each_and_the_device_its_own_number():
    settings = ServiceSettings(device="cpu", prepare_threads=4)
    async with RewardService("fake", Counting(FakeSettings()), settings) as service:
        answers = await asyncio.gather(*(service.score(raw_request(i)) for i in range(8)))
    found = [_score(answer) for answer in answers]
    assert {score.value for score in found} == {1.0}
    assert {score.scores["device"] for score in found} == {3.0}


def test_the_operators_numbers_stay():
    environ = {"RAYON_NUM_THREADS": "2"}
    bound_libraries(environ)
    assert environ.pop("RAYON_NUM_THREADS") == "2"
    assert all(1 <= int(count) <= 8 for count in environ.values())
    assert "OMP_NUM_THREADS" not in environ


class Waiting(FakeScorer):
    """Waits for an engine, of which each item needs the other's batch to be there too."""

    @property
    def parallel_batches(self):
        return 2

    def __init__(self, settings):
        super().__init__(settings)
        self.together = threading.Barrier(2, timeout=20)

    def warmup_samples(self):
        return ()

    def score(self, batch):
        self.together.wait()
        return [ItemScore(value=float(len(batch))) for _ in batch]


async def test_batches_of_a_scorer_that_waits_elsewhere_do_not_wait_for_each_other():
    settings = ServiceSettings(device="cpu", max_batch_items=1)
    async with RewardService("fake", Waiting(FakeSettings()), settings) as service:
        answers = await asyncio.gather(*(service.score(raw_request(i)) for i in range(4)))
    assert [_score(answer).value for answer in answers] == [1.0] * 4


def _score(answer) -> ItemScore:
    (result,) = answer.results
    assert result.score is not None
    return result.score
