"""The pickle dialect over a real socket: recorded bodies, answers, statuses, who may use it."""

import asyncio
import json
import pickle

import numpy as np
import pytest
import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from judged import Judged
from reward_api.errors import Reason
from reward_api.wire.messages import ItemScore
from reward_services.chassis.service import State
from reward_services.chassis.settings import ServiceSettings
from reward_services.run import EXIT_USAGE, run


def _rule_images():
    """The pictures of the recorded bodies, before their JPEG."""
    y, x, c = np.meshgrid(np.arange(40), np.arange(48), np.arange(3), indexing="ij")
    return [((7 * x + 13 * y + 29 * c + x * y // 5 + 31 * k) % 256) for k in (0, 1)]


async def _post(running, fields, **headers):
    body = fields if isinstance(fields, bytes) else pickle.dumps(fields)
    response = await running.http.post("/", content=body, headers=headers)
    return response, pickle.loads(response.content)


async def test_the_recorded_deqa_body(serve, wire):
    running = await serve(dialects="pickle")
    response, answer = await _post(running, wire["deqa"]["body"])
    assert response.status_code == 200
    assert list(answer) == ["outputs"]
    # JPEG of quality 75: near the means of the pictures
    means = [image.mean() / 255 for image in _rule_images()]
    assert answer["outputs"] == pytest.approx(means, abs=0.02)
    assert [type(value) for value in answer["outputs"]] == [float, float]


@pytest.mark.parametrize("only_strict", [True, False])
async def test_the_recorded_geneval_bodies(serve, wire, only_strict):
    recorded = wire[f"geneval_only_strict_{str(only_strict).lower()}"]
    metadata = recorded["what"]["meta_datas"]
    scores = [
        {"flow_grpo": 0.75, "official": 1.0, "strict": 0.0},
        {"flow_grpo": 1.0, "official": 1.0, "strict": 1.0},
    ]
    running = await serve(_GenEvalLike([*zip(metadata, scores, strict=True)]), dialects="pickle")
    response, answer = await _post(running, recorded["body"])
    assert response.status_code == 200
    official = [0.0, 0.0] if only_strict else [1.0, 1.0]
    assert answer["scores"] == [0.75, 1.0]
    assert answer["rewards"] == official
    assert answer["strict_rewards"] == [0.0, 1.0]
    assert answer["group_rewards"]["counting"] == [official[0], -10.0]
    assert answer["group_strict_rewards"]["position"] == [-10.0, 1.0]
    assert answer["group_rewards"]["colors"] == [-10.0, -10.0]
    # prepared in any order
    assert sorted(running.scorer.prompts) == sorted(one["prompt"] for one in metadata)


async def test_the_recorded_body_with_an_array_is_refused(serve, wire):
    running = await serve(dialects="pickle")
    response, answer = await _post(running, wire["unifiedreward_remote_unused"]["body"])
    assert response.status_code == 400
    assert "STACK_GLOBAL" in answer["error"]


async def test_answers_are_those_of_the_published_server(serve, golden, files):
    """Every batch of the golden file: the sub-scores go in, the server's answer comes out."""
    cases = json.loads((golden / "geneval_batches.json").read_text())["cases"]
    assert cases
    running = await serve(dialects="pickle")
    for case in cases:
        expect = case["expect"]
        metadata = [item["metadata"] for item in case["items"]]
        scores = [
            {
                "flow_grpo": expect["scores"][i],
                "official": 1.0 if case["only_strict"] else expect["rewards"][i],
                "strict": expect["strict_rewards"][i],
            }
            for i in range(len(metadata))
        ]
        metadata = [{**m, "scores": s} for m, s in zip(metadata, scores, strict=True)]
        request = {
            "images": [files[0]] * len(metadata),
            "meta_datas": metadata,
            "only_strict": case["only_strict"],
        }
        _, answer = await _post(running, request)
        assert answer == expect
        assert list(answer) == list(expect)


async def test_verl_omni_form(serve, files, values):
    running = await serve(dialects="pickle")
    request = {"images": files[:1], "prompts": ["a cat"], "metadata": {}}
    response, answer = await _post(running, request)
    assert (response.status_code, answer) == (200, {"scores": values[:1]})
    request = {"images": files, "prompts": list("abcdef"), "metadata": [{"n": i} for i in range(6)]}
    _, answer = await _post(running, request)
    assert answer == {"scores": values}
    assert {"n": 5} in running.scorer.metadata


BAD = [
    (["images"], 400, "a dict with a list 'images'"),
    ({"images": "x"}, 400, "a dict with a list 'images'"),
    ({"images": ["x"]}, 400, "images[0] is a str"),
    ({"images": [b"x"], "queries": []}, 400, "unknown key 'queries'"),
    ({"images": []}, 400, "items is empty"),
    ({"images": [b"x"], "prompts": ["a", "b"]}, 422, "2 prompts for 1 images"),
    ({"images": [b"x"], "prompts": ["a"], "metadata": {"tag": "x"}}, 422, "metadata"),
    ({"images": [b"x"], "meta_datas": [{"prompt": "a"}]}, 422, "'tag' and 'prompt'"),
    ({"images": [b"x"], "meta_datas": {}}, 400, "meta_datas must be a list"),
    ({"images": [b"x"], "prompts": ["a"]}, 422, "item 0: IMAGE_DECODE"),
    (b"\x80\x04cos\nsystem\n.", 400, "GLOBAL"),
]


async def test_the_callers_mistakes_are_not_sent_again(serve):
    running = await serve(dialects="pickle")
    for fields, status, words in BAD:
        response, answer = await _post(running, fields)
        assert (response.status_code, list(answer)) == (status, ["error"]), fields
        assert words in answer["error"], fields
        assert "retry-after" not in response.headers, fields


async def test_geneval_metadata_needs_a_geneval_reward(serve, files):
    running = await serve(dialects="pickle")
    response, answer = await _post(
        running, {"images": files[:1], "meta_datas": [{"tag": "colors", "prompt": "a red cup"}]}
    )
    assert response.status_code == 400
    assert "GenEval" in answer["error"]


async def test_item_errors_fail_the_call_and_never_as_500(serve, files):
    running = await serve(dialects="pickle")
    for prompt, retry_after in (("broken", None), ("babble", None), ("later", "1")):
        fields = {"images": files[:3], "prompts": ["a", prompt, "b"]}
        response, answer = await _post(running, fields)
        assert response.status_code == 503
        assert response.headers.get("retry-after") == retry_after
        assert "1 of 3 items have no score; item 1" in answer["error"]


async def test_a_service_that_does_not_take_work_asks_to_come_back(serve, files):
    running = await serve(dialects="pickle")
    running.service.state = State.LOADING
    response, answer = await _post(running, {"images": files})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert Reason.LOADING in answer["error"]


async def test_flow_grpos_client_waits_for_the_service_and_gives_up_on_mistakes(serve, files):
    """requests with the published retry policy."""
    running = await serve(dialects="pickle")
    running.service.state = State.LOADING
    bodies = [pickle.dumps({"images": files[:1]}), pickle.dumps({"images": [b"no image"]})]
    session = requests.Session()
    session.trust_env = False
    policy = Retry(total=1000, backoff_factor=1, status_forcelist=[500], allowed_methods=None)
    session.mount("http://", HTTPAdapter(max_retries=policy))

    def post(body):
        return session.post(running.url, data=body, timeout=20)

    waiting = asyncio.create_task(asyncio.to_thread(post, bodies[0]))
    while not (await running.counted("pickle")).get("503"):
        await asyncio.sleep(0.01)
    running.service.state = State.READY
    assert "outputs" in pickle.loads((await waiting).content)
    refused = await asyncio.to_thread(post, bodies[1])
    assert refused.status_code == 422
    session.close()
    assert await running.counted("pickle") == {"503": 1, "200": 1, "422": 1}


async def test_limits_and_tokens_hold(serve, files):
    running = await serve(dialects="pickle", token="secret", max_request_bytes=4096)
    assert (await running.http.post("/", content=b"x")).status_code == 401
    response, answer = await _post(
        running, {"images": [b"x" * 5000]}, Authorization="Bearer secret"
    )
    assert response.status_code == 413
    assert "max_request_bytes" in answer["error"]
    response, _ = await _post(running, {"images": files[:1]}, Authorization="Bearer secret")
    assert response.status_code == 200


async def test_off_by_default(serve, files):
    running = await serve()
    response = await running.http.post("/", content=pickle.dumps({"images": files}))
    assert response.status_code in (404, 405)


def test_strangers_are_refused_at_the_start(capsys):
    for flags in (["--insecure-no-auth"], []):
        command = ["--dialects", "oip,pickle", "--host", "0.0.0.0", *flags]
        assert run("judged", Judged, command, {}) == EXIT_USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert "the dialect pickle is for callers on this machine or with a token" in line


def test_loopback_or_a_token_will_do():
    assert "pickle" in ServiceSettings(dialects="pickle").enabled_dialects
    settings = ServiceSettings(dialects="oip, pickle", host="0.0.0.0", token=SecretStr("x"))
    assert settings.enabled_dialects == ("oip", "pickle")


class _GenEvalLike(Judged):
    """Gives the sub-scores that go with each metadata."""

    def __init__(self, scored):
        super().__init__(Judged.Settings())
        self._scored = scored
        self.prompts = []

    def score(self, batch):
        self.prompts += [sample.prompt for sample in batch if sample.metadata]
        return [ItemScore(value=0.0, scores=self._of(sample.metadata)) for sample in batch]

    def _of(self, metadata):
        return next((scores for known, scores in self._scored if known == dict(metadata)), {})


async def test_deepgens_form_of_geneval(serve, files):
    """{images, prompts, metadata: {meta_datas, only_strict}}: the recorded body's keys."""
    scores = [
        {"flow_grpo": 0.75, "official": 1.0, "strict": 0.0},
        {"flow_grpo": 1.0, "official": 1.0, "strict": 1.0},
    ]
    metadata = [{"tag": "counting", "include": []}, {"tag": "position", "include": []}]
    running = await serve(_GenEvalLike([*zip(metadata, scores, strict=True)]), dialects="pickle")
    request = {
        "images": files[:2],
        "prompts": ["two cats", "a cat left of a dog"],
        "metadata": {"meta_datas": metadata, "only_strict": False},
    }
    response, answer = await _post(running, request)
    assert response.status_code == 200
    assert answer["scores"] == [0.75, 1.0]
    assert answer["rewards"] == [1.0, 1.0]
    assert answer["group_strict_rewards"]["position"] == [-10.0, 1.0]
    assert sorted(running.scorer.prompts) == sorted(request["prompts"])
    request["metadata"] = {"meta_datas": [{}, {}]}
    response, answer = await _post(running, request)
    assert response.status_code == 422
    assert "meta_datas[0] must be a dict with 'tag'" in answer["error"]


async def test_reference_images_are_refused_by_name(serve, files):
    running = await serve(dialects="pickle")
    request = {"images": {"source": files[:1], "edited": files[:1]}, "prompts": ["a"]}
    response, answer = await _post(running, request)
    assert response.status_code == 415
    assert "no reference image" in answer["error"]
