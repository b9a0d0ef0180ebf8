"""The HTTP front over a real socket: framings, errors, bounds, health, disconnects."""

import asyncio
import base64
import io
import json
import sys
from typing import Any

import pytest
from conftest import PIXELS, assert_nothing_left, hold_device, packed_request, queued, raw_request
from fake_scorer import FakeSettings
from PIL import Image as pillow

from reward_api.errors import Reason
from reward_api.wire.framing import encode_request
from reward_api.wire.messages import Image, Item, Problem, ScoreRequest, ScoreResponse

BINARY = "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"


def _png(index=0):
    file = io.BytesIO()
    pillow.fromarray(PIXELS[index]).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def _post(running, request, **headers):
    framing, parts = encode_request(request)
    return await running.http.post(
        "/v1/score", content=b"".join(map(bytes, parts)), headers=framing | headers
    )


def _problem(response, status, reason):
    assert response.status_code == status, (reason, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert (problem.status, problem.reason) == (status, reason)
    return problem


async def test_json_and_binary_give_the_same_scores(serve):
    running = await serve()
    binary = await _post(running, packed_request("a", "b"))
    body = {
        "items": [
            {"prompt": "a", "image": _png(0)},
            {"prompt": "b", "image": {"data": "data:image/png;base64," + _png(1)}},
        ]
    }
    plain = await running.http.post("/v1/score", json=body)
    scores: Any = [
        [result.score for result in ScoreResponse.model_validate_json(r.content).results]
        for r in (binary, plain)
    ]
    assert scores[0] == scores[1]
    assert scores[0][1].value == PIXELS[1].mean() + 0.001


async def test_headers(serve):
    running = await serve()
    response = await _post(
        running, raw_request(0), **{"X-Request-Id": "abc-1", "X-Reward-Priority": "1"}
    )
    assert response.status_code == 200
    assert response.headers["x-request-id"] == response.json()["request_id"] == "abc-1"
    names = [part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")]
    assert names == ["queue", "decode", "inference", "total"]


async def test_a_request_id_in_the_body_is_echoed(serve):
    running = await serve()
    response = await _post(running, raw_request(0, request_id="from-body"))
    assert response.headers["x-request-id"] == "from-body"


BAD_REQUESTS = [
    (b"{}", {"Content-Type": "text/plain"}, 415, Reason.UNSUPPORTED),
    (b"{}", {}, 415, Reason.UNSUPPORTED),
    (b"", {"Content-Type": "application/json"}, 400, Reason.INVALID_REQUEST),
    (b"{", {"Content-Type": "application/json"}, 400, Reason.INVALID_REQUEST),
    (b"[1]", {"Content-Type": "application/json"}, 400, Reason.INVALID_REQUEST),
    (b"\xff\xfe", {"Content-Type": "application/json"}, 400, Reason.INVALID_REQUEST),
    (b'{"items": []}', {"Content-Type": "application/json"}, 400, Reason.INVALID_REQUEST),
    (b'{"items": [{}], "x": 1}', {"Content-Type": "application/json"}, 400, "INVALID_REQUEST"),
    (b"[" * 100_000, {"Content-Type": "application/json"}, 400, Reason.INVALID_REQUEST),
    (
        b'{"items": [{"image": "no base64!"}]}',
        {"Content-Type": "application/json"},
        400,
        Reason.INVALID_REQUEST,
    ),
    (
        b'{"items": [{"prompt": "\\ud800"}]}',
        {"Content-Type": "application/json"},
        400,
        Reason.INVALID_REQUEST,
    ),
    (b'{"items": [{}]}', {"Content-Type": BINARY}, 400, Reason.INVALID_REQUEST),
    (b'{"items": [{}]}', {"Content-Type": BINARY, LENGTH: "99"}, 400, Reason.INVALID_REQUEST),
    (b'{"items": [{}]}', {"Content-Type": BINARY, LENGTH: "-1"}, 400, Reason.INVALID_REQUEST),
    (b'{"items": [{}]}', {"Content-Type": BINARY, LENGTH: "x"}, 400, Reason.INVALID_REQUEST),
    (b'{"items": [{}]}more', {"Content-Type": BINARY, LENGTH: "15"}, 400, "INVALID_REQUEST"),
    (
        b'{"items": [{"image": {"binary_data_size": 9, "height": 1, "width": 3}}]}xxx',
        {"Content-Type": BINARY, LENGTH: "72"},
        400,
        Reason.INVALID_REQUEST,
    ),
    (
        b'{"model": "other", "items": [{}]}',
        {"Content-Type": "application/json"},
        404,
        Reason.MODEL_NOT_FOUND,
    ),
    (
        b'{"items": [{}]}',
        {"Content-Type": "application/json", "X-Reward-Timeout-Ms": "soon"},
        400,
        Reason.INVALID_REQUEST,
    ),
    (
        b'{"items": [{}]}',
        {"Content-Type": "application/json", "X-Reward-Priority": "9"},
        400,
        Reason.INVALID_REQUEST,
    ),
    (
        b'{"items": [{}]}',
        {"Content-Type": "application/json", "X-Request-Id": "a b"},
        400,
        Reason.INVALID_REQUEST,
    ),
]


async def test_bad_requests_are_typed_problems(serve):
    running = await serve()
    for content, headers, status, reason in BAD_REQUESTS:
        response = await running.http.post("/v1/score", content=content, headers=headers)
        problem = _problem(response, status, reason)
        assert problem.detail
        assert "Traceback" not in response.text
    assert (await _post(running, raw_request(0))).status_code == 200
    assert_nothing_left(running.service)


async def test_item_errors_are_results_not_failures(serve):
    running = await serve()
    body = {"items": [{"prompt": "a", "image": "R0lGODlh"}, {"prompt": "boom", "image": _png()}]}
    response = await running.http.post("/v1/score", json=body)
    assert response.status_code == 200
    reasons = [result["error"]["reason"] for result in response.json()["results"]]
    assert reasons == ["IMAGE_DECODE", "MODEL_ERROR"]


async def test_content_length_over_the_limit_is_refused_before_reading(serve):
    running = await serve(max_request_bytes=1000)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.http.base_url.port)
    writer.write(
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1001\r\n\r\n"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()


async def test_a_body_without_length_is_bounded_while_it_is_read(serve):
    running = await serve(max_request_bytes=100_000)
    headers = {"Content-Type": "application/json"}

    async def small():
        yield json.dumps({"items": [{"image": _png()}]}).encode()

    async def large():
        for _ in range(30):
            yield b" " * 10_000

    assert (
        await running.http.post("/v1/score", content=small(), headers=headers)
    ).status_code == 200
    _problem(
        await running.http.post("/v1/score", content=large(), headers=headers),
        413,
        Reason.REQUEST_TOO_LARGE,
    )
    assert_nothing_left(running.service)


async def test_a_body_that_never_ends_meets_the_deadline(serve):
    running = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.http.base_url.port)
    writer.write(
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"X-Reward-Timeout-Ms: 50\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 504")
    writer.close()
    await writer.wait_closed()
    assert_nothing_left(running.service)


async def test_overload_answers_429_with_retry_after_while_health_answers(serve):
    running = await serve(max_queue_items=2)
    held = await hold_device(running.service, running.scorer)
    waiting = asyncio.create_task(_post(running, raw_request(1)))
    await queued(running.service, 1)
    problem = _problem(refused := await _post(running, raw_request(2)), 429, Reason.QUEUE_FULL)
    assert int(refused.headers["retry-after"]) >= 1
    assert (problem.retry_after_ms or 0) > 0
    for path in ("/livez", "/readyz", "/v1/metadata", "/metrics"):
        assert (await running.http.get(path)).status_code == 200
    running.scorer.gate.set()
    await held
    assert (await waiting).status_code == 200
    assert_nothing_left(running.service)


async def test_bytes_are_bounded_before_they_are_read(serve):
    running = await serve(max_queue_bytes=800)
    held = await hold_device(running.service, running.scorer)
    waiting = asyncio.create_task(_post(running, packed_request("a", "b", "c")))
    await queued(running.service, 3)
    _problem(await _post(running, packed_request("a", "b", "c")), 429, Reason.QUEUE_FULL)
    running.scorer.gate.set()
    await held
    assert (await waiting).status_code == 200


async def test_the_deadline_header(serve):
    running = await serve()
    held = await hold_device(running.service, running.scorer)
    response = await _post(running, raw_request(1), **{"X-Reward-Timeout-Ms": "50"})
    _problem(response, 504, Reason.DEADLINE)
    running.scorer.gate.set()
    await held
    assert running.scorer.batches == [["first"]]  # the late item was never scored


@pytest.mark.parametrize("side", [2, 400])  # 400: a body that goes straight into its buffer
async def test_a_caller_that_disconnects_leaves_the_queue(serve, side):
    running = await serve()
    held = await hold_device(running.service, running.scorer)
    image = Image(data=bytes(3 * side * side), height=side, width=side)
    request = ScoreRequest(items=[Item(id="1", prompt="gone", image=image)])
    gone = asyncio.create_task(_post(running, request))
    await queued(running.service, 1)
    gone.cancel()
    await queued(running.service, 0)
    running.scorer.gate.set()
    await held
    await _post(running, raw_request(2, "next"))
    assert running.scorer.batches == [["first"], ["next"]]
    assert b'code="499"' in running.service.metrics.exposition()
    assert_nothing_left(running.service)


async def test_a_caller_that_disconnects_while_sending_leaves_nothing(serve):
    running = await serve()
    _, writer = await asyncio.open_connection("127.0.0.1", running.http.base_url.port)
    writer.write(
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    await writer.drain()
    async with asyncio.timeout(5):
        while running.service.inflight == 0:
            await asyncio.sleep(0.002)
        writer.close()
        await writer.wait_closed()
        while running.service.inflight:
            await asyncio.sleep(0.002)
    assert_nothing_left(running.service)


async def test_health_says_why_it_is_not_ready(serve):
    running = await serve()
    assert (await running.http.get("/readyz")).json() == {"status": "ready"}
    running.service.announce_drain()
    response = await running.http.get("/readyz")
    assert (response.status_code, response.json()["reason"]) == (503, "draining")
    assert (await running.http.get("/livez")).status_code == 200
    running.service.refuse_new_calls()
    _problem(await _post(running, raw_request(0)), 503, Reason.DRAINING)


async def test_unknown_routes_and_methods_are_problems(serve):
    running = await serve()
    for response, status in (
        (await running.http.get("/nope"), 404),
        (await running.http.get("/v1/score"), 405),
    ):
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status


async def test_metadata(serve):
    running = await serve(FakeSettings(delay_ms=2), max_request_items=9)
    metadata = (await running.http.get("/v1/metadata")).json()
    assert metadata["limits"]["max_request_items"] == 9
    assert metadata["settings"]["delay_ms"] == "2"


async def test_docs_describe_both_forms(serve):
    running = await serve()
    document = (await running.http.get("/openapi.json")).json()
    operation = document["paths"]["/v1/score"]["post"]
    assert set(operation["requestBody"]["content"]) == {"application/json", BINARY}
    schemas = document["components"]["schemas"]
    assert {"ScoreRequest", "ScoreResponse", "Item", "PackedImages", "Problem"} <= set(schemas)
    references = json.dumps(document).split('"#/components/schemas/')[1:]
    assert {reference.split('"')[0] for reference in references} <= set(schemas)
    page = await running.http.get("/docs")
    assert page.status_code == 200
    assert "POST /v1/score" in page.text
    assert "ScoreRequest" in page.text
    # It is there without the internet: nothing is loaded from anywhere.
    assert "src=" not in page.text
    assert "<link" not in page.text
    assert "<script" not in page.text


async def test_metrics_have_the_documented_names(serve):
    running = await serve()
    await _post(running, packed_request("a", "boom"))
    text = (await running.http.get("/metrics")).text
    for line in (
        'reward_requests_total{code="200",model="fake",protocol="http"} 1.0',
        'reward_items_total{model="fake",outcome="score"} 1.0',
        'reward_items_total{model="fake",outcome="error"} 1.0',
        'reward_item_errors_total{reason="MODEL_ERROR"} 1.0',
        "reward_ready 1.0",
        "reward_score_count 1.0",
        "reward_queue_items 0.0",
        "reward_queue_bytes 0.0",
        "reward_inflight_requests 0.0",
        "reward_cancelled_items_total 0.0",
        'reward_build_info{device="cpu",revision="r1",version="0.1.0"} 1.0',
    ):
        assert line in text.splitlines()
    for name in (
        "reward_request_duration_seconds_bucket",
        "reward_stage_duration_seconds_bucket",
        "reward_batch_items_bucket",
        "reward_received_bytes_total",
        *(["process_start_time_seconds"] if sys.platform == "linux" else []),
    ):
        assert name in text
