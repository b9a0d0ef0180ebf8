"""Several rewards at once, and the reward functions of flow_grpo."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reward_api.callers.flow_grpo import as_flow_grpo, as_flow_grpo_multi
from reward_api.client import AsyncRewardClient
from reward_api.errors import AuthenticationFailed, ItemFailure, ItemsFailed, Reason, error_for
from reward_api.suite import AsyncRewardSuite
from reward_api.sync import RewardClient, RewardSuite
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/multi_score.json").read_text())
IMAGES = np.zeros((4, 4, 4, 3), np.uint8)
PROMPTS = ["1", "2", "3", "4"]


def number(image, prompt, metadata):
    return float(prompt)


def number_except(*failing):
    def score(image, prompt, metadata):
        if prompt in failing:
            raise ItemFailure(Reason.PROMPT_TARGET, "scripted")
        return float(prompt)

    return score


def suite_of(weights=None, /, on_error: Any = "raise", **rewards: Any):
    clients = {name: AsyncRewardClient(transport=reward) for name, reward in rewards.items()}
    return AsyncRewardSuite(clients, weights, on_error=on_error)


async def test_weighted_sum():
    suite = suite_of({"a": 1.0, "b": 0.5}, a=FakeReward(number), b=FakeReward(lambda *_: 2.0))
    scores = await suite.score(IMAGES, PROMPTS)
    assert scores.values.tolist() == [2, 3, 4, 5]
    assert scores.rewards["a"].values.tolist() == [1, 2, 3, 4]
    assert list(scores.rewards) == ["a", "b"]
    assert scores.valid.all()


async def test_rewards_are_asked_at_the_same_time():
    everyone = asyncio.Barrier(2)

    class Together(FakeReward):
        async def score(self, request, *, timeout_s):
            await asyncio.wait_for(everyone.wait(), 10)
            return await super().score(request, timeout_s=timeout_s)

    assert (await suite_of(a=Together(), b=Together()).score(IMAGES, PROMPTS)).valid.all()


async def test_invalid_in_one_is_invalid_in_the_sum():
    rewards = {"a": FakeReward(number_except("2")), "b": FakeReward(number_except("2", "4"))}
    scores = await suite_of(on_error="nan", **rewards).score(IMAGES, PROMPTS)
    assert np.array_equal(scores.values, [2, np.nan, 6, np.nan], equal_nan=True)
    assert scores.valid.tolist() == [True, False, True, False]
    assert {i: str(e) for i, e in scores.errors.items()} == {
        1: "PROMPT_TARGET: a: scripted",
        3: "PROMPT_TARGET: b: scripted",
    }
    assert scores.rewards["a"].valid.tolist() == [True, False, True, True]
    with pytest.raises(ItemsFailed, match="2 of 4 items"):
        await suite_of(**rewards).score(IMAGES, PROMPTS)


async def test_a_dead_reward_makes_its_images_invalid():
    dead = FakeReward(number)
    dead.fail_next(error_for(Reason.DEVICE_FAILED, "lost"), times=1000)
    suite = suite_of(on_error="nan", a=dead, b=FakeReward(number))
    scores = await suite.score(IMAGES, PROMPTS, timeout_s=1.0)
    assert not scores.valid.any()
    assert np.isnan(scores.values).all()
    assert scores.rewards["b"].valid.all()


async def test_a_reward_of_weight_zero_only_reports():
    weights = {"a": 1.0, "watched": 0.0}
    suite = suite_of(weights, a=FakeReward(number), watched=FakeReward(number_except("1")))
    scores = await suite.score(IMAGES, PROMPTS)
    assert scores.values.tolist() == [1, 2, 3, 4]
    assert scores.rewards["watched"].valid.tolist() == [False, True, True, True]


async def test_a_wrong_token_is_raised():
    refusing = FakeReward()
    refusing.fail_next(error_for(Reason.AUTH, "wrong token"), times=10)
    with pytest.raises(AuthenticationFailed):
        await suite_of(on_error="nan", a=refusing, b=FakeReward()).score(IMAGES, PROMPTS)


async def test_images_are_encoded_once():
    calls = []
    tensor = torch.rand(4, 3, 8, 8)

    class Counting(torch.Tensor):
        def cpu(self, *args, **kwargs):
            calls.append(tuple(self.shape))
            return super().cpu(*args, **kwargs)

    suite = suite_of(a=FakeReward(), b=FakeReward(), c=FakeReward())
    scores = await suite.score(tensor.as_subclass(Counting), PROMPTS)
    assert calls.count((4, 8, 8, 3)) == 1
    values = [batch.values.tolist() for batch in scores.rewards.values()]
    assert values[0] == values[1] == values[2]


async def test_each_encoding_is_made_once():
    rewards = [FakeReward() for _ in range(3)]
    encodings = ("png", "png", "jpeg")
    clients = {
        str(i): AsyncRewardClient(transport=reward, encoding=encoding)
        for i, (reward, encoding) in enumerate(zip(rewards, encodings, strict=True))
    }
    await AsyncRewardSuite(clients).score(IMAGES, PROMPTS)
    images = [reward.requests[0].items[0].image for reward in rewards]
    first, second, third = (image.data for image in images if image is not None)
    assert first is second
    assert first.startswith(b"\x89PNG")
    assert third.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": "http://a"}, {"weights": {"b": 1}}, "weights are given for"),
        ({"a": "http://a"}, {"on_error": "zero"}, "choose"),
        ({"a": "a:1"}, {}, "expected http://host:port"),
    ],
)
def test_wrong_suites(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        AsyncRewardSuite(rewards, **options)


async def test_rewards_by_url(serve):
    services = [serve(FakeReward(number)), serve(FakeReward(lambda *_: 1.0))]
    rewards = {"a": services[0].urls["http"], "b": [services[1].urls["grpc"]]}
    async with AsyncRewardSuite(rewards, timeout_s=20) as suite:
        await suite.wait_ready(10)
        assert (await suite.score(IMAGES, PROMPTS)).values.tolist() == [2, 3, 4, 5]


# flow_grpo


def test_flow_grpo_function():
    def score(image, prompt, metadata):
        return ItemScore(value=image.mean(), scores={"n": metadata.get("n", 0)})

    reward_fn = as_flow_grpo(RewardClient(transport=FakeReward(score)))
    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 8, 8)
    assert reward_fn(images, ["a", "b"], [{"n": 1}, {"n": 2}]) == ([0.0, 255.0], {"n": [1.0, 2.0]})
    uint8 = (images.permute(0, 2, 3, 1) * 255).numpy().astype(np.uint8)
    assert reward_fn(uint8, ("a", "b"), {})[0] == [0.0, 255.0]


def test_flow_grpo_function_raises_instead_of_zero():
    reward_fn = as_flow_grpo(RewardClient(transport=FakeReward(number_except("2"))))
    with pytest.raises(ItemsFailed):
        reward_fn(IMAGES, PROMPTS)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_multi_score_of_the_original(case):
    """Number for number, keys in the original's order."""

    def scripted(name):
        def score(image, prompt, metadata):
            sub_scores = _geneval_scores(case, int(prompt)) if name == "geneval" else {}
            return ItemScore(value=case["scores"][name][int(prompt)], scores=sub_scores)

        return FakeReward(score)

    clients = {name: RewardClient(transport=scripted(name)) for name in case["weights"]}
    multi = as_flow_grpo_multi(RewardSuite(clients, case["weights"]))
    count = len(case["details"]["avg"])
    metadata = [{"tag": _tag(case, i)} for i in range(count)]
    prompts = [str(i) for i in range(count)]
    details, info = multi(np.zeros((count, 4, 4, 3), np.uint8), prompts, metadata, False)
    assert details == case["details"]
    assert list(details) == case["detail_keys_in_order"]
    assert info == {}


def _geneval_scores(case, index):
    extra = case["geneval_extra"]
    return {
        "flow_grpo": 0.0,
        "official": extra["rewards"][index],
        "strict": extra["strict_rewards"][index],
    }


def _tag(case, index):
    groups = (case["geneval_extra"] or {}).get("group_rewards", {})
    return next((tag for tag, values in groups.items() if values[index] != -10.0), "")
