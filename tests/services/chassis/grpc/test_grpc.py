"""The gRPC front over a real channel: scores, statuses, trailers, cancellation, health, parity."""

import asyncio
from typing import Any

import grpc
import pytest
from conftest import assert_nothing_left, hold_device, packed_request, queued, raw_request
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reward_api.errors import Reason
from reward_api.wire.convert import metadata_from_proto, request_to_proto, response_from_proto
from reward_api.wire.framing import encode_request
from reward_api.wire.messages import Image, Item, ScoreRequest, ScoreResponse
from reward_api.wire.v1 import reward_pb2, reward_pb2_grpc


def _stub(running) -> Any:
    return reward_pb2_grpc.RewardServiceStub(running.channel)


def _call(running, request, timeout=20.0):
    return _stub(running).Score(request_to_proto(request), timeout=timeout)


async def _refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), trailers


async def _over_http(running, request):
    headers, parts = encode_request(request)
    response = await running.http.post(
        "/v1/score", content=b"".join(map(bytes, parts)), headers=headers
    )
    return ScoreResponse.model_validate_json(response.content)


async def test_grpc_http_and_in_process_agree(serve):
    running = await serve()
    items = [
        *packed_request("a", "boom", "nan", "failure", "ünïcode \U0001f984").items,
    ]
    request = packed_request("a", "boom", "nan", "failure", "u", request_id="r", model="fake")
    request = request.model_copy(update={"items": items, "include_details": True})
    answers = [
        response_from_proto(await _call(running, request)),
        await _over_http(running, request),
        await running.service.score(request),
    ]
    for answer in answers[1:]:
        assert answer.results == answers[0].results
        assert (answer.model, answer.version, answer.revision, answer.request_id) == (
            "fake",
            "0.1.0",
            "r1",
            "r",
        )
    reasons = [r.error and r.error.reason for r in answers[0].results]
    assert reasons == [
        None,
        Reason.MODEL_ERROR,
        Reason.NON_FINITE_SCORE,
        Reason.JUDGE_PARSE,
        None,
    ]


async def test_a_request_id_in_the_metadata(serve):
    running = await serve()

    async def answered(request, request_id):
        message = request_to_proto(request)
        metadata = (("x-request-id", request_id),)
        return (await _stub(running).Score(message, metadata=metadata)).request_id

    assert await answered(raw_request(0), "abc-1") == "abc-1"
    assert await answered(raw_request(0, request_id="from-message"), "abc-1") == "from-message"
    with pytest.raises(grpc.aio.AioRpcError, match="printable ASCII"):
        await answered(raw_request(0), "a b")


async def test_both_protocols_share_one_batch(serve):
    running = await serve()
    held = await hold_device(running.service, running.scorer)
    calls = [asyncio.create_task(_over_http(running, raw_request(1, "http"))) for _ in range(3)]
    calls += [asyncio.ensure_future(_call(running, raw_request(1, "grpc"))) for _ in range(3)]
    await queued(running.service, 6)
    running.scorer.gate.set()
    answers = await asyncio.gather(*calls)
    await held
    assert len(running.scorer.batches) == 2
    assert sorted(running.scorer.batches[1]) == ["grpc"] * 3 + ["http"] * 3
    assert {tuple(answer.batch_sizes) for answer in answers} == {(6,)}


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (raw_request(0, model="other"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        (ScoreRequest(items=[]), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (packed_request(*"abcde"), grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE"),
        (raw_request(0, request_id="a b"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ],
)
async def test_refusals_carry_status_and_reason(serve, request_, code, reason):
    running = await serve(max_request_items=4)
    got, trailers = await _refused(_call(running, request_))
    assert (got, trailers["reward-reason"]) == (code, reason)
    assert "grpc-retry-pushback-ms" not in trailers
    assert_nothing_left(running.service)


async def test_bytes_that_are_no_message(serve):
    running = await serve()
    score = running.channel.unary_unary("/reward.v1.RewardService/Score")
    code, trailers = await _refused(score(b"\xff\xff\xff"))
    assert (code, trailers["reward-reason"]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )


async def test_raw_image_without_height(serve):
    running = await serve()
    message = reward_pb2.ScoreRequest()
    message.items.add().image.raw.data = b"xxx"
    code, _ = await _refused(_stub(running).Score(message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_messages_over_the_limit(serve):
    running = await serve(max_request_bytes=10_000)
    item = Item(image=Image(data=bytes(200_000)))
    code, _ = await _refused(_call(running, ScoreRequest(items=[item])))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_overload_pushes_back_while_health_answers(serve):
    running = await serve(max_queue_items=2)
    held = await hold_device(running.service, running.scorer)
    waiting = asyncio.ensure_future(_call(running, raw_request(1)))
    await queued(running.service, 1)
    code, trailers = await _refused(_call(running, raw_request(2)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailers["reward-reason"] == "QUEUE_FULL"
    assert int(trailers["grpc-retry-pushback-ms"]) > 0
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    metadata = await _stub(running).GetMetadata(reward_pb2.GetMetadataRequest(), timeout=10)
    assert metadata_from_proto(metadata) == running.service.metadata()
    running.scorer.gate.set()
    await asyncio.gather(held, waiting)


async def test_deadline_while_queued(serve):
    running = await serve()
    held = await hold_device(running.service, running.scorer)
    code, _ = await _refused(_call(running, raw_request(1, "late"), timeout=0.05))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    await queued(running.service, 0)
    running.scorer.gate.set()
    await held
    assert running.scorer.batches == [["first"]]


async def test_cancelled_calls_leave_the_queue(serve):
    running = await serve()
    held = await hold_device(running.service, running.scorer)
    call = _call(running, raw_request(1, "gone"))
    await queued(running.service, 1)
    call.cancel()
    await queued(running.service, 0)
    running.scorer.gate.set()
    await held
    assert running.scorer.batches == [["first"]]
    assert_nothing_left(running.service)


async def test_health_watch_follows_readiness(serve):
    running = await serve()
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="reward.v1.RewardService"))
    status = health_pb2.HealthCheckResponse
    assert (await watch.read()).status == status.SERVING
    await running.grpc_front.set_serving(False)
    assert (await watch.read()).status == status.NOT_SERVING
    watch.cancel()


async def test_reflection_when_asked_for(serve):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    running = await serve(reflection=True)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    async for answer in stub.ServerReflectionInfo(iter(requests)):
        names = {service.name for service in answer.list_services_response.service}
        assert "reward.v1.RewardService" in names


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x01\xff"])
@pytest.mark.parametrize(
    ("method", "is_stream"),
    [
        ("/grpc.health.v1.Health/Check", False),
        ("/grpc.health.v1.Health/Watch", False),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True),
    ],
)
async def test_garbage_for_the_librarys_services_is_the_callers_error(
    serve, caplog, method, is_stream, garbage
):
    """Left to the library it is UNKNOWN, with a traceback in the log for each call."""
    running = await serve(reflection=True)
    if is_stream:
        call = running.channel.stream_stream(method)(iter([garbage]))
    else:
        call = running.channel.unary_stream(method)(garbage)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caplog.text == ""
