"""The functions that other trainers call: GenEval for flow_grpo, TRL, verl-omni."""

import asyncio
import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as pillow

from reward_api import (
    AsyncRewardClient,
    RewardClient,
    RewardSuite,
    as_flow_grpo,
    as_flow_grpo_geneval,
    as_flow_grpo_multi,
    as_trl,
)
from reward_api.callers import miles, verl
from reward_api.errors import InvalidRequest, ItemFailure, ItemsFailed, Reason
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore

IMAGES = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
VALUES = [float(image.mean() / 255) for image in IMAGES]


def score_or_fail(image, prompt, metadata):
    if prompt == "fail":
        raise ItemFailure(Reason.MODEL_ERROR, "told to fail")
    value = float(image.mean() / 255)
    return ItemScore(value=value, scores={"n": metadata.get("n", -1)})


@pytest.fixture
def reward():
    return FakeReward(score_or_fail)


# GenEval for flow_grpo


def test_geneval_lists_are_those_of_the_published_server(golden):
    cases = json.loads((golden / "geneval_batches.json").read_text())["cases"]
    for case in cases:
        expect = case["expect"]

        def score(image, prompt, metadata, case=case, expect=expect):
            i = int(prompt)
            sub_scores = {
                "flow_grpo": expect["scores"][i],
                "official": 1.0 if case["only_strict"] else expect["rewards"][i],
                "strict": expect["strict_rewards"][i],
            }
            return ItemScore(value=0.5, scores=sub_scores)

        metadata = [item["metadata"] for item in case["items"]]
        prompts = [str(i) for i in range(len(metadata))]
        images = torch.zeros(len(metadata), 3, 8, 8)
        reward_fn = as_flow_grpo_geneval(RewardClient(transport=FakeReward(score)))
        answer = reward_fn(images, prompts, metadata, case["only_strict"])
        assert answer == tuple(expect.values())
        assert list(expect) == [
            "scores",
            "rewards",
            "strict_rewards",
            "group_rewards",
            "group_strict_rewards",
        ]


def test_geneval_needs_a_geneval_service(reward):
    reward_fn = as_flow_grpo_geneval(RewardClient(transport=reward))
    with pytest.raises(InvalidRequest, match="not a GenEval service"):
        reward_fn(IMAGES, ["a"] * 3, [{"tag": "colors"}] * 3)
    with pytest.raises(ItemsFailed):
        reward_fn(IMAGES, ["a", "fail", "b"], [{"tag": "colors"}] * 3)


# TRL


def _trl(reward, **options):
    return as_trl(AsyncRewardClient(transport=reward), **options)


async def test_trl_takes_images_as_completions(reward):
    reward_fn = _trl(reward, name="aesthetic")
    assert asyncio.iscoroutinefunction(reward_fn)
    assert reward_fn.__name__ == "aesthetic"
    completions = [pillow.fromarray(IMAGES[0]), IMAGES[1], torch.from_numpy(IMAGES[2])]
    columns = {"metadata": [{"n": i} for i in range(3)], "trainer_state": object()}
    scores = await reward_fn(
        prompts=["a", "b", "c"], completions=completions, completion_ids=[[1]] * 3, **columns
    )
    assert scores == VALUES
    assert [item.prompt for item in reward.requests[0].items] == ["a", "b", "c"]
    assert [item.metadata for item in reward.requests[0].items] == columns["metadata"]


async def test_trl_takes_conversations(reward):
    prompts = [
        [{"role": "user", "content": "draw"}],
        [{"role": "user", "content": [{"type": "text", "text": "a cup"}, {"type": "image"}]}],
    ]
    completions = [
        [{"role": "assistant", "content": [{"type": "image", "image": pillow.fromarray(image)}]}]
        for image in IMAGES[:2]
    ]
    assert await _trl(reward)(prompts, completions) == VALUES[:2]
    assert [item.prompt for item in reward.requests[0].items] == ["draw", "a cup"]


async def test_trl_failures_are_raised_or_none(reward, caplog):
    prompts = ["a", "fail", "b"]
    with pytest.raises(ItemsFailed):
        await _trl(reward)(prompts, list(IMAGES))
    scores = await _trl(reward, on_error="none")(prompts, list(IMAGES))
    assert scores == [VALUES[0], None, VALUES[2]]
    assert "completion 1 has no score: MODEL_ERROR" in caplog.text


async def test_trl_refuses_completions_without_an_image(reward):
    for completion in ([{"role": "assistant", "content": "only text"}], []):
        with pytest.raises(InvalidRequest, match="one image; this one has 0"):
            await _trl(reward)(["a"], [completion])
    with pytest.raises(InvalidRequest):
        await _trl(reward)(["a"], ["only text"])


# verl-omni


@pytest.fixture
async def server_url(serve, reward):
    url = serve(reward).urls["http"]
    yield url
    await verl._client(url, None).close()


async def test_verl_omni(server_url, reward):
    chw = torch.from_numpy(IMAGES[1]).permute(2, 0, 1)
    for image in (chw, chw[None], chw.float() / 255):
        answer = await verl.compute_score(
            solution_image=image,
            ground_truth="a cup",
            server_url=server_url,
            data_source="ocr",
            extra_info={"index": 4, "metadata": {"n": 2}},
            reward_router_address=None,
        )
        assert answer == {"score": VALUES[1], "n": 2.0}
    assert len(reward.requests) == 3
    item = reward.requests[0].items[0]
    assert (item.prompt, item.metadata) == ("a cup", {"n": 2})


async def test_verl_omni_failures_raise(server_url):
    with pytest.raises(ItemsFailed, match="told to fail"):
        await verl.compute_score(IMAGES[0], "fail", server_url)
    with pytest.raises(InvalidRequest, match="1 prompts for 3 images"):
        await verl.compute_score(IMAGES, "a", server_url)


def test_verl_omni_has_its_documented_path():
    assert import_module("reward_api.verl").compute_score is verl.compute_score


def test_verl_omni_keeps_its_connections():
    client = verl._client("http://a:1,http://b:2", None)
    assert verl._client("http://a:1,http://b:2", None) is client
    assert verl._client("http://a:1,http://b:2", "token") is not client


# flow_grpo


def _multi(reward, **options):
    suite = RewardSuite({"ocr": RewardClient(transport=reward)})
    return as_flow_grpo_multi(suite, **options)


def test_multi_takes_the_published_calls(reward):
    """As train_sd3 calls it, and as train_flux_kontext does, positional and by name."""
    prompts, metadata = ["a", "b", "c"], [{}, {}, {}]
    expected = {"ocr": VALUES, "avg": VALUES}
    assert _multi(reward)(IMAGES, prompts, metadata, only_strict=True)[0] == expected
    assert _multi(reward)(IMAGES, prompts, metadata, True)[0] == expected
    assert _multi(reward)(IMAGES, prompts, metadata, None, only_strict=False)[0] == expected
    edited = _multi(reward, ref_images="ignore")
    assert edited(IMAGES, prompts, metadata, IMAGES, only_strict=True)[0] == expected
    assert edited(IMAGES, prompts, metadata, ref_images=IMAGES, only_strict=True)[0] == expected


def test_reference_images_are_refused_by_name(reward):
    for call in (
        lambda fn: fn(IMAGES, ["a"] * 3, [], IMAGES, only_strict=True),
        lambda fn: fn(IMAGES, ["a"] * 3, [], ref_images=list(IMAGES)),
    ):
        with pytest.raises(InvalidRequest, match=r'ref_images: .*ref_images="ignore"'):
            call(_multi(reward))
    with pytest.raises(TypeError, match="odd"):
        _multi(reward)(IMAGES, ["a"] * 3, odd=1)


def test_one_reward_in_place_of_several_names_the_right_function(reward):
    """flow_grpo's trainers call what multi_score gave; as_flow_grpo is an entry of its table."""
    reward_fn = as_flow_grpo(RewardClient(transport=reward))
    with pytest.raises(InvalidRequest, match=r"only_strict.*as_flow_grpo_multi"):
        reward_fn(IMAGES, ["a"] * 3, [], only_strict=True)
    with pytest.raises(InvalidRequest, match="as_flow_grpo_multi"):
        reward_fn(IMAGES, ["a"] * 3, [], IMAGES)


@pytest.mark.parametrize("metadata", [None, {}, [], (), np.array([{}, {}, {}], dtype=object)])
def test_metadata_as_those_trainers_pass_it(reward, metadata):
    scores, info = as_flow_grpo(RewardClient(transport=reward))(IMAGES, ("a", "b", "c"), metadata)
    assert scores == VALUES
    assert info == {"n": [-1.0] * 3}


def test_a_reward_cannot_take_the_key_of_the_sum():
    with pytest.raises(ValueError, match="'avg' is the weighted sum's key"):
        as_flow_grpo_multi({"avg": "http://a:1"})


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(reward, weight):
    with pytest.raises(ValueError, match=r"weights: .*ocr"):
        RewardSuite({"ocr": RewardClient(transport=reward)}, {"ocr": weight})


# miles-diffusion


@pytest.fixture
async def miles_url(serve, reward, monkeypatch):
    url = serve(reward).urls["http"]
    monkeypatch.setenv("MILES_REWARD_URL", url)
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    yield url
    await miles._client(url, None).close()


def _samples(*outputs, prompt="a cup"):
    return [SimpleNamespace(prompt=prompt, generated_output=output) for output in outputs]


async def test_miles(miles_url, reward):
    """[C, T, H, W] with T = 1, on either scale, in any type."""
    chw = np.moveaxis(IMAGES[1], -1, 0)
    forms = [
        chw,
        chw[:, None],
        torch.from_numpy(chw.copy())[:, None].float() / 255,
        torch.from_numpy(chw.copy()).float(),
        chw.astype(np.float32)[:, None],
    ]
    assert await miles.score(None, _samples(*forms)) == [VALUES[1]] * 5
    assert reward.requests[0].items[0].prompt == "a cup"
    with pytest.raises(ItemsFailed, match="told to fail"):
        await miles.score(None, _samples(chw, prompt="fail"))
    with pytest.raises(InvalidRequest, match=r"sample 0: .*no video"):
        await miles.score(None, _samples(np.zeros((3, 4, 8, 8), np.uint8)))


async def test_miles_without_a_url(monkeypatch):
    monkeypatch.delenv("MILES_REWARD_URL", raising=False)
    with pytest.raises(InvalidRequest, match="MILES_REWARD_URL is not set"):
        await miles.score(None, _samples(IMAGES[0]))
