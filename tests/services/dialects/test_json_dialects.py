"""Flow-Factory, UniRL, OpenRLHF and slime over a real socket, with bodies as their clients make
them."""

import asyncio
import base64
import io

import pytest
import requests
from PIL import Image as pillow

from reward_services.chassis.service import State
from reward_services.chassis.settings import ServiceSettings

# Flow-Factory


def _compute(prompt, image, **fields):
    empty = dict.fromkeys(("video", "condition_images", "condition_videos", "kwargs"))
    return {"prompt": prompt, "image": image, **empty, **fields}


async def test_flow_factory(serve, texts, values):
    running = await serve()
    response = await running.http.post("/compute", json=_compute(["a"] * 6, texts))
    assert (response.status_code, response.json()) == (200, {"rewards": values})
    assert await running.counted("flow-factory") == {"200": 1}
    body = {"prompts": ["a"], "images": texts[:1], "extra": {"metadata": [{"n": 1}]}}
    assert (await running.http.post("/compute", json=body)).json() == {"rewards": values[:1]}
    assert running.scorer.metadata[-1] == {"n": 1}


FLOW_FACTORY_ERRORS = [
    (_compute(["broken"], ["@"]), "item 0: IMAGE_DECODE"),
    (_compute(["a", "b"], [""]), "2 prompts for 1 images"),
    (_compute(["a"], None), "image: there are none"),
    (_compute(["a"], None, video=[["x"]]), "video: this service scores images only"),
    (_compute(["a"], [""], condition_images=[["x"]]), "condition_images"),
    ({"image": []}, "prompt: Field required"),
    ([], "INVALID_REQUEST"),
]


async def test_flow_factory_shows_the_reason_only_of_a_200(serve):
    running = await serve()
    for body, words in FLOW_FACTORY_ERRORS:
        response = await running.http.post("/compute", json=body)
        assert response.status_code == 200
        assert list(response.json()) == ["error"], body
        assert words in response.json()["error"], body


async def test_flow_factory_sends_again_what_passes_by_itself(serve, texts):
    running = await serve()
    response = await running.http.post("/compute", json=_compute(["a", "later"], texts[:2]))
    assert response.status_code == 503
    assert "OUT_OF_MEMORY" in response.json()["error"]
    running.service.state = State.LOADING
    response = await running.http.post("/compute", json=_compute(["a"], texts[:1]))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_health(serve):
    running = await serve()
    response = await running.http.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    running.service.state = State.DRAINING
    response = await running.http.get("/health")
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "rewards": {"judged": "draining"}}


# UniRL


def _asked(text, image_b64, **fields):
    turn = {"text": text, "image_b64": image_b64}
    return {"history": [turn], "required_rewards": ["judged"], **fields}


async def test_unirl(serve, texts, values):
    running = await serve()
    assert (await running.http.get("/rewards")).json() == {"rewards": ["judged"]}
    requests = [
        _asked("ab", texts[0], sample_id="s0", request_id="r", metadata={"n": 1}),
        _asked("", texts[1]),
    ]
    answer = (await running.http.post("/score", json={"requests": requests})).json()
    assert answer["results"] == [
        {"judged": {"score": values[0], "length": 2.0}},
        {"judged": {"score": values[1], "length": 0.0}},
    ]
    assert answer["errors"] == [{}, {}]
    assert (answer["identities"][0]["sample_id"], answer["identities"][1]["sample_id"]) == (
        "s0",
        None,
    )
    assert answer["identities"][0]["scorer_version"] == "r1"
    assert answer["protocol_version"] == "1"
    assert {"n": 1} in running.scorer.metadata


async def test_unirl_has_an_error_per_item(serve, texts, values):
    running = await serve()
    requests = [_asked("a", texts[0]), _asked("broken", texts[1]), _asked("a", "no base64 at all")]
    response = await running.http.post("/score", json={"requests": requests})
    answer = response.json()
    assert response.status_code == 200
    assert [list(result) for result in answer["results"]] == [["judged"], [], []]
    assert answer["errors"][0] == {}
    assert answer["errors"][1] == {"judged": "MODEL_ERROR: told to fail"}
    assert answer["errors"][2]["judged"].startswith("IMAGE_DECODE")


async def test_unirl_of_nothing(serve):
    running = await serve()
    answer = (await running.http.post("/score", json={"requests": []})).json()
    assert (answer["results"], answer["errors"]) == ([], [])


UNIRL_ERRORS = [
    ({"requests": [_asked("a", "x", required_rewards=["clip"])]}, "this service is 'judged'"),
    ({"requests": [_asked("a", "x")], "protocol_version": "2"}, "protocol_version"),
    ({"requests": [_asked("a", "x")], "grad_mode": True}, "grad_mode"),
    ({"requests": [_asked("a", None)]}, "one turn with text and image_b64"),
    ({"requests": [{"history": [], "required_rewards": ["judged"]}]}, "one turn"),
    ({"requests": [_asked("a", "x", scorer_version="r0")]}, "scorer_version"),
    ({}, "requests: Field required"),
]


async def test_unirl_errors_of_the_whole(serve):
    running = await serve()
    for body, words in UNIRL_ERRORS:
        response = await running.http.post("/score", json=body)
        assert response.status_code == 400, body
        assert words in response.json()["detail"], body


# OpenRLHF and slime


async def test_openrlhf(serve, texts, values):
    running = await serve()
    body = {"query": texts[:2], "prompts": ["abc", ""], "labels": ['{"n": 1}', "42"]}
    answer = (await running.http.post("/get_reward", json=body)).json()
    assert answer == {
        "rewards": values[:2],
        "scores": values[:2],
        "extra_logs": {"length": [3.0, 0.0]},
    }
    assert sorted(running.scorer.metadata, key=str) == [{"n": 1}, {}]  # prepared in any order
    body = {"query": ["a drawing"], "images": [f"data:image/png;base64,{texts[2]}"]}
    answer = (await running.http.post("/get_reward", json=body)).json()
    assert answer["rewards"] == [values[2]]


async def test_slime(serve, texts, values):
    running = await serve()
    body = {"prompt": "a", "response": texts[0], "label": {"n": 2}}
    response = await running.http.post("/get_reward", json=body)
    assert response.json() == values[0]
    assert running.scorer.metadata == [{"n": 2}]


GET_REWARD_ERRORS = [
    ({"prompt": "a", "response": "only text"}, 422, "IMAGE_DECODE"),
    ({"query": [""], "prompts": ["a", "b"]}, 422, "2 prompts for 1 images"),
    ({"query": [""], "labels": ["{"]}, 422, "a label starts with"),
    ({"prompt": "a"}, 400, "neither query"),
    ({"query": []}, 400, "items is empty"),
]


async def test_get_reward_errors(serve):
    running = await serve()
    for body, status, words in GET_REWARD_ERRORS:
        response = await running.http.post("/get_reward", json=body)
        assert response.status_code == status, body
        assert words in response.json()["error"], body


async def test_a_failed_item_is_an_error_and_never_a_number(serve, texts):
    running = await serve()
    body = {"query": texts[:2], "prompts": ["a", "broken"]}
    response = await running.http.post("/get_reward", json=body)
    assert response.status_code == 500
    assert "1 of 2 items have no score; item 1: MODEL_ERROR" in response.json()["error"]
    assert await running.counted("get-reward") == {"500": 1}


# all of them


async def test_every_dialect_gives_the_same_scores(serve, files, texts, values):
    running = await serve()
    answers = await asyncio.gather(
        running.http.post("/compute", json=_compute(["a"], texts[:1])),
        running.http.post("/score", json={"requests": [_asked("a", texts[0])]}),
        running.http.post("/get_reward", json={"query": texts[:1]}),
        running.http.post("/v1/score", json={"items": [{"image": texts[0]}]}),
    )
    compute, score, get_reward, own = (answer.json() for answer in answers)
    assert compute["rewards"] == get_reward["rewards"] == values[:1]
    assert score["results"][0]["judged"]["score"] == values[0]
    assert own["results"][0]["score"]["value"] == values[0]


async def test_large_bodies_are_parsed_in_the_pool(serve):
    running = await serve()
    file = io.BytesIO()
    pillow.effect_noise((400, 400), 90).convert("RGB").save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    assert len(text) > 100_000
    response = await running.http.post("/compute", json=_compute(["a"], [text]))
    assert len(response.json()["rewards"]) == 1


PATHS = ["/compute", "/score", "/get_reward", "/v2/models/judged/infer"]


async def test_limits_tokens_and_headers_hold(serve):
    running = await serve(token="secret", max_request_bytes=1000)
    allowed = {"Authorization": "Bearer secret"}
    for path in PATHS:

        async def post(content, path=path, **headers):
            return await running.http.post(path, content=content, headers={**allowed, **headers})

        assert (await running.http.post(path, content=b"{}")).status_code == 401
        assert "max_request_bytes" in (await post(b"x" * 1001)).json()["error"]
        response = await post(b"{}", **{"X-Reward-Timeout-Ms": "soon"})
        assert "X-Reward-Timeout-Ms" in response.json()["error"]
        response = await post(b"[1]", **{"X-Request-Id": "abc"})
        assert response.headers["x-request-id"] == "abc"


async def test_dialects_can_be_turned_off(serve):
    running = await serve(dialects="none")
    for path in PATHS:
        assert (await running.http.post(path, content=b"{}")).status_code == 404
    assert (await running.http.get("/health")).status_code == 404


async def test_our_own_documentation_does_not_list_them(serve):
    running = await serve()
    document = (await running.http.get("/openapi.json")).json()
    assert set(document["paths"]) >= {"/v1/score", "/v1/metadata"}
    assert not set(document["paths"]) & {"/compute", "/score", "/v2"}


def test_unknown_dialects_are_named():
    with pytest.raises(ValueError, match="there is no 'opi'; choose from oip, flow-factory"):
        ServiceSettings(dialects="opi")
    assert ServiceSettings(dialects="none").enabled_dialects == ()
    assert "pickle" not in ServiceSettings().enabled_dialects


REFERENCES = {
    "/compute": lambda text: _compute(["a"], [text], condition_images=[[text]]),
    "/score": lambda text: {
        "requests": [{**_asked("a", text), "history": [{"text": "a", "image_b64": text}] * 2}]
    },
}


@pytest.mark.parametrize("path", REFERENCES)
async def test_reference_images_are_refused_by_name(serve, texts, path):
    running = await serve()
    response = await running.http.post(path, json=REFERENCES[path](texts[0]))
    assert "reference image" in response.json()["error"]


async def test_slime_sends_what_the_dataset_has(serve, texts, values):
    """Its prompt is a text, or a conversation."""
    running = await serve()
    chat = [
        {"role": "system", "content": "draw"},
        {"role": "user", "content": [{"type": "text", "text": "a cup"}, {"type": "image"}]},
    ]
    body = {"prompt": chat, "response": texts[0], "label": None}
    response = await running.http.post("/get_reward", json=body)
    assert response.json() == values[0]
    score = await running.http.post(
        "/get_reward", json={"query": texts[:1], "prompts": ["draw\na cup"]}
    )
    assert score.json()["extra_logs"] == {"length": [float(len("draw\na cup"))]}


@pytest.mark.parametrize("path", [*PATHS, "/v1/score"])
async def test_compressed_bodies_are_refused_by_name(serve, path):
    running = await serve()
    for encoding in ("gzip", "br", "deflate", "zstd", "x-gzip"):
        headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
        response = await running.http.post(path, content=b"\x1f\x8b", headers=headers)
        said = response.text
        assert f"Content-Encoding is '{encoding}'" in said
        assert response.status_code == (200 if path == "/compute" else 415)


async def test_the_token_as_the_password_of_a_url(serve, texts, values):
    """For clients that can set nothing but a URL: `requests` sends it as HTTP Basic."""
    running = await serve(token="s3cret/+")
    url = running.url.replace("http://", "http://any:s3cret%2F%2B@")

    def post(base):
        with requests.Session() as session:
            session.trust_env = False
            return session.post(f"{base}/get_reward", json={"query": texts[:1]}, timeout=20)

    answer = await asyncio.to_thread(post, url)
    assert answer.json()["rewards"] == values[:1]
    for wrong in ("any:wrong", "s3cret", ":"):
        answer = await asyncio.to_thread(post, running.url.replace("http://", f"http://{wrong}@"))
        assert answer.status_code == 401
        assert "password of the URL" in answer.json()["error"]
