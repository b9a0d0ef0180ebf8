"""Several rewards behind one URL: the bodies that UniRL's and cosmos-rl's clients make, and our own."""

import asyncio
import base64
import io
import json
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image as pillow

from processes import environment
from reward_api import AsyncRewardClient
from reward_api.errors import ItemFailure, Reason
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore
from reward_services.gateway.__main__ import main
from reward_services.gateway.app import Bodies, create_app
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
async def http(fakes):
    rewards = Rewards(
        {n: AsyncRewardClient(transport=f) for n, f in fakes.items()}, {"p": "pickscore"}
    )
    app = create_app(rewards, Bodies(2**20, 2**21))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
    app.state.queue.close()
    await rewards.close()


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
    assert response.json()["rewards"]["ocr"] == "loading"
    assert response.json()["rewards"]["pickscore"] == "ready"


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
    for _ in range(500):
        response = await http.post("/api/reward/pull", data={"uuid": key, "type": name})
        if (
            response.status_code == 200
            or response.json()["message"] != "INVALID_REQUEST: not ready"
        ):
            return response
        await asyncio.sleep(0.01)
    raise AssertionError("never ready")


async def test_cosmos(http):
    body = _enqueued(
        reward_fn={"ocr": 1.0, "pickscore": 0.5, "unified_reward": 0, "gen_eval": 1.0},
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
    skipped = await _pulled(http, key, "unified_reward")
    assert skipped.status_code == 400
    assert "was not enqueued for" in skipped.json()["message"]
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


BAD = [
    (b"no line of json", "one line of JSON"),
    (_enqueued(prompts=["a"]), "1 prompts for 3 images"),
    (_enqueued(reward_fn={"ocr": 0}), "no reward with a weight"),
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


# the command

MISTAKES = [
    ([], "--reward"),
    (["--reward", "http://a:1"], "expected NAME=URL"),
    (["--reward", "a=b"], "expected http://host:port"),
    (["--reward", "a=http://a:1", "--reward", "a=http://b:1"], "same name"),
    (["--reward", "a=http://a:1", "--alias", "x"], "expected ALIAS=NAME"),
    (["--reward", "a=http://a:1", "--alias", "x=b"], "there is no reward of this name"),
    (["--reward", "a=http://a:1", "--host", "0.0.0.0"], "--token-file"),
    (["--reward", "a=http://a:1", "--http-port", "70000"], "--http-port"),
    (["--reward", "a=http://a:1", "--timeout", "nan"], "--timeout"),
    (["--reward", "a=http://a:1", "--token-file", "missing"], "--token-file missing"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.system
def test_the_command(tmp_path):
    (tmp_path / "token").write_text("secret")
    flags = ["--reward", "ocr=http://127.0.0.1:1", "--http-port", "0", "--token-file", "token"]
    process = subprocess.Popen(
        [sys.executable, "-m", "reward_services.gateway", *flags, "--timeout", "0.5"],
        env=environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().split()[1]
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            assert client.get("/livez").status_code == 200
            assert client.get("/rewards").status_code == 401
            client.auth = ("any", "secret")
            assert client.get("/rewards").json() == {"rewards": ["ocr"]}
            body = {"requests": [_asked("a", TEXTS[0], ["ocr"])]}
            answer = client.post("/score", json=body).json()
            assert answer["results"] == [{}]
            assert "CONNECTION" in answer["errors"][0]["ocr"]
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()
