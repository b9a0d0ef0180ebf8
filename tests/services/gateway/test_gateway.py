"""Several rewards behind one URL: the bodies that UniRL's and cosmos-rl's clients make, and our own."""

import asyncio
import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image as pillow

from reward_api import AsyncRewardClient
from reward_api.errors import ItemFailure, Reason
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore
from reward_services.gateway.app import Bodies, counted, create_app
from reward_services.gateway.metrics import GatewayMetrics
from reward_services.gateway.rewards import Rewards

PIXELS = np.random.default_rng(3).integers(0, 256, (3, 8, 6, 3), np.uint8)
VALUES = [float(picture.mean() / 255) for picture in PIXELS]


def _text(picture):
    file = io.BytesIO()
    pillow.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


TEXTS = [_text(picture) for picture in PIXELS]


def _bright(image, prompt, metadata):
    if prompt == "broken":
        raise ItemFailure(Reason.MODEL_ERROR, "told to fail")
    return ItemScore(value=float(image.mean() / 255), scores={"length": float(len(prompt))})


def _geneval(image, prompt, metadata):
    return ItemScore(value=0.5, scores={"flow_grpo": 0.75, "official": 1.0, "strict": 0.0})


@pytest.fixture
def fakes():
    return {
        "pickscore": FakeReward(_bright, revision="p1"),
        "unifiedreward": FakeReward(lambda *_: 3.0, revision="u1"),
        "geneval": FakeReward(_geneval),
        "ocr": FakeReward(_bright),
    }


@pytest.fixture
def metrics():
    return GatewayMetrics()


@pytest.fixture
async def app(fakes, metrics):
    rewards = Rewards(
        {n: AsyncRewardClient(transport=f) for n, f in fakes.items()},
        {"p": "pickscore"},
        on_batch=metrics.observe_batch,
    )
    app = create_app(rewards, Bodies(2**20, 2**21), metrics)
    yield app
    app.state.queue.close()
    await rewards.close()


@pytest.fixture
async def http(app, metrics):
    transport = httpx.ASGITransport(counted(app, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
def queue(app):
    return app.state.queue


# UniRL


def _asked(text, image, rewards, **fields):
    turn = {"text": text, "image_b64": image}
    return {"history": [turn], "required_rewards": rewards, **fields}


async def test_unirl_with_several_rewards(http):
    both = ["pickscore", "unified_reward"]
    requests = [
        _asked("ab", TEXTS[0], both, sample_id="s0"),
        _asked("broken", TEXTS[1], both),
        _asked("c", TEXTS[2], ["pickscore"]),
    ]
    answer = (await http.post("/score", json={"requests": requests})).json()
    assert answer["results"] == [
        {"pickscore": {"score": VALUES[0], "length": 2.0}, "unified_reward": {"score": 3.0}},
        {"unified_reward": {"score": 3.0}},
        {"pickscore": {"score": VALUES[2], "length": 1.0}},
    ]
    assert answer["errors"] == [{}, {"pickscore": "MODEL_ERROR: told to fail"}, {}]
    assert answer["identities"][0]["sample_id"] == "s0"
    assert answer["identities"][0]["scorer_version"] == "pickscore=p1;unified_reward=u1"
    assert answer["identities"][2]["scorer_version"] == "p1"


async def test_a_whole_shard_in_one_request(http, fakes):
    """300 images, which one service refuses; the client makes calls of it."""
    requests = [_asked("a", TEXTS[i % 3], ["pickscore"]) for i in range(300)]
    answer = (await http.post("/score", json={"requests": requests})).json()
    assert [r["pickscore"]["score"] for r in answer["results"]] == VALUES * 100
    assert max(len(request.items) for request in fakes["pickscore"].requests) <= 64


async def test_names_and_health(http, fakes):
    names = (await http.get("/rewards")).json()["rewards"]
    assert set(names) >= {"pickscore", "p", "unified_reward", "gen_eval"}
    assert "clip" not in names
    assert (await http.get("/health")).json()["status"] == "ok"
    fakes["ocr"].is_ready = False
    response = await http.get("/health")
    assert response.status_code == 503
    states = response.json()["rewards"]
    assert states["ocr"] == "loading"
    # UniRL's client wants each of its names here.
    assert states["pickscore"] == states["p"] == states["unified_reward"] == "ready"


async def test_a_pinned_scorer_is_refused_not_ignored(http):
    body = {"requests": [_asked("a", TEXTS[0], ["pickscore"], scorer_version="p1")]}
    response = await http.post("/score", json=body)
    assert response.status_code == 400
    assert "leave expected_scorer_version out" in response.json()["error"]


async def test_metrics(http):
    body = {"requests": [_asked("broken", TEXTS[0], ["p"]), _asked("a", TEXTS[1], ["ocr"])]}
    await http.post("/score", json=body)
    await http.post("/score", content=b"{")
    await http.get("/nope/123")
    text = (await http.get("/metrics")).text
    for line in (
        'reward_gateway_requests_total{code="200",route="/score"} 1.0',
        'reward_gateway_requests_total{code="400",route="/score"} 1.0',
        'reward_gateway_requests_total{code="404",route="other"} 1.0',
        'reward_gateway_items_total{outcome="error",reward="pickscore"} 1.0',
        'reward_gateway_items_total{outcome="score",reward="ocr"} 1.0',
        'reward_gateway_item_errors_total{reason="MODEL_ERROR",reward="pickscore"} 1.0',
        "reward_gateway_held_bytes 0.0",
    ):
        assert line in text, line


async def test_unknown_rewards_and_reference_images_are_named(http):
    body = {"requests": [_asked("a", TEXTS[0], ["pickscor"])]}
    response = await http.post("/score", json=body)
    assert response.status_code == 404
    assert "did you mean pickscore?" in response.json()["error"]
    body["requests"][0]["history"] *= 2
    assert "reference image" in (await http.post("/score", json=body)).json()["error"]


# our own form


async def test_our_own_form(http):
    items = [
        {"id": "x", "prompt": "ab", "image": TEXTS[0]},
        {"prompt": "broken", "image": TEXTS[1]},
    ]
    body = {"items": items, "rewards": ["pickscore", "unifiedreward"]}
    answer = (await http.post("/v1/score", json=body)).json()
    first, second = answer["results"]
    assert first["id"] == "x"
    assert first["rewards"]["pickscore"]["score"] == {"value": VALUES[0], "scores": {"length": 2.0}}
    assert second["rewards"]["pickscore"]["error"]["reason"] == "MODEL_ERROR"
    assert second["rewards"]["unifiedreward"]["score"]["value"] == 3.0
    assert answer["revisions"] == {"pickscore": ["p1"], "unifiedreward": ["u1"]}
    everything = (await http.post("/v1/score", json={"items": items})).json()
    assert set(everything["revisions"]) == {"pickscore", "unifiedreward", "geneval", "ocr"}
    empty = await http.post("/v1/score", json={"items": []})
    assert (empty.status_code, empty.json()["reason"]) == (400, "INVALID_REQUEST")


# cosmos-rl


def _enqueued(pixels=PIXELS, **fields):
    header = {
        "prompts": ["ab", "c", ""],
        "reward_fn": {"ocr": 1.0},
        "media_type": "image",
        **fields,
    }
    file = io.BytesIO()
    np.save(file, pixels)
    return json.dumps(header).encode() + b"\n" + file.getvalue()


async def _pulled(http, key, name):
    return await http.post("/api/reward/pull", data={"uuid": key, "type": name})


async def test_cosmos(http):
    body = _enqueued(
        reward_fn={"ocr": 1.0, "pickscore": -0.5, "unified_reward": 0, "gen_eval": 1.0},
        geneval_tags=["colors"] * 3,
        geneval_includes=[[{"class": "cat", "count": 1}]] * 3,
    )
    key = (await http.post("/api/reward/enqueue", content=body)).json()["uuid"]
    ocr = (await _pulled(http, key, "ocr")).json()
    assert ocr["scores"] == {"ocr_reward": VALUES}
    assert ocr["type"] == "ocr"
    assert ocr["input_info"] == {"batch_size": 3}
    assert (await _pulled(http, key, "pickscore")).json()["scores"] == {"pickscore": VALUES}
    assert (await _pulled(http, key, "gen_eval")).json()["scores"] == {
        "gen_eval_score": [0.75] * 3,
        "gen_eval_reward": [1.0] * 3,
        "gen_eval_strict": [0.0] * 3,
    }
    unweighted = await _pulled(http, key, "unified_reward")
    assert unweighted.json()["scores"] == {"unified_reward": [3.0] * 3}
    other = await _pulled(http, key, "hps")
    assert other.status_code == 400
    assert "was not enqueued for" in other.json()["message"]
    assert (await http.post("/api/reward/ping", data={"info_data": "x"})).json()["message"]


async def test_an_enqueued_batch_counts_as_held_until_it_is_scored(http, fakes):
    large = np.zeros((1, 500, 500, 3), np.uint8)
    body = _enqueued(large, prompts=["a"])
    fakes["ocr"].delay_s = 3600.0  # until the fixture closes the queue
    answers = [await http.post("/api/reward/enqueue", content=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "holds all the bytes it may" in answers[2].json()["message"]


async def test_bytes_of_a_scored_batch_are_free_again(http):
    body = _enqueued(np.zeros((1, 500, 500, 3), np.uint8), prompts=["a"])
    for _ in range(5):
        key = (await http.post("/api/reward/enqueue", content=body)).json()["uuid"]
        assert (await _pulled(http, key, "ocr")).json()["scores"] == {"ocr_reward": [0.0]}


async def test_a_failed_item_never_becomes_a_number_for_cosmos(http):
    key = (
        await http.post("/api/reward/enqueue", content=_enqueued(prompts=["a", "broken", "c"]))
    ).json()["uuid"]
    for _ in range(2):
        response = await _pulled(http, key, "ocr")
        assert response.status_code == 400
        assert "item 1: told to fail" in response.json()["message"]


async def test_a_pull_that_comes_too_early_is_one_that_cosmos_repeats(http, queue, fakes):
    """425; on 400 its client raises, and on nothing at all it gives up after ten seconds."""
    fakes["ocr"].delay_s = 60
    queue._wait_s = 0.01
    key = (await http.post("/api/reward/enqueue", content=_enqueued())).json()["uuid"]
    assert (await _pulled(http, key, "ocr")).status_code == 425
    queue.close()
    await asyncio.sleep(0)
    assert "too old" in (await _pulled(http, key, "ocr")).json()["message"]


async def test_what_was_pulled_makes_room_and_what_was_not_does_not(http, queue):
    queue._max_tasks = 2
    keys = []
    for _ in range(3):
        answer = await http.post("/api/reward/enqueue", content=_enqueued())
        keys.append(answer.json()["uuid"])
        for _ in range(2):  # a pull whose answer was lost is sent again
            assert (await _pulled(http, keys[-1], "ocr")).status_code == 200
    assert "never enqueued" in (await _pulled(http, keys[0], "ocr")).json()["message"]
    for _ in range(2):
        assert (await http.post("/api/reward/enqueue", content=_enqueued())).status_code == 200
    full = await http.post("/api/reward/enqueue", content=_enqueued())
    assert full.status_code == 429
    assert "2 batches wait to be pulled" in full.json()["message"]
    assert "reward_gateway_waiting_batches 2.0" in (await http.get("/metrics")).text


BAD = [
    (b"no line of json", "one line of JSON"),
    (_enqueued(prompts=["a"]), "1 prompts for 3 images"),
    (_enqueued(reward_fn={}), "reward_fn names no reward"),
    (_enqueued(reward_fn={"nope": 1}), "there is no reward"),
    (_enqueued(media_type="video"), "images are scored here"),
    (_enqueued(PIXELS.astype(np.float32)), "send uint8"),
    (_enqueued(PIXELS[0]), "send uint8"),
    (_enqueued()[:-5], "send uint8"),
    (_enqueued(np.array([None], dtype=object)), "send uint8"),
    (_enqueued(geneval_tags=["a"], geneval_includes=[]), "1 geneval_tags"),
    (json.dumps({"prompts": [], "reward_fn": {}}).encode() + b"\nnot npy", "not a .npy file"),
]


@pytest.mark.parametrize(("body", "words"), BAD)
async def test_bad_batches_are_named(http, body, words):
    response = await http.post("/api/reward/enqueue", content=body)
    assert response.status_code == 400
    assert words in response.json()["message"]


async def test_limits(http):
    response = await http.post("/score", content=b"x" * (2**20 + 1))
    assert response.status_code == 413
    response = await http.post("/score", content=b"{", headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding is 'gzip'" in response.json()["error"]
    response = await http.get("/nope")
    assert (response.status_code, "/nope" in response.json()["error"]) == (404, True)
