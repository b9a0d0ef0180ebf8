"""The Open Inference Protocol by hand: JSON, binary framing, gRPC contents, errors. The published
client's own calls are in test_triton_client.py."""

import json
import math
import struct

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_api.errors import InvalidRequest
from reward_api.wire.v1 import open_inference_pb2 as pb
from reward_services import __version__
from reward_services.chassis.service import State
from reward_services.dialects import oip
from reward_services.dialects.oip import split_elements

INFER = "/v2/models/judged/infer"
LENGTH = "Inference-Header-Content-Length"


def _bytes(name, data):
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data}


def _framed(header, *parts):
    text = json.dumps(header).encode()
    return {"content": b"".join([text, *parts]), "headers": {LENGTH: str(len(text))}}


def _binary(name, datatype, shape, size):
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def _elements(*entries):
    return b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)


async def test_what_the_server_says_of_itself(serve):
    running = await serve()
    server = (await running.http.get("/v2")).json()
    assert server == {
        "name": "flow-rewards",
        "version": __version__,
        "extensions": list(oip.EXTENSIONS),
    }
    for path in ("health/live", "health/ready", "models/judged/ready"):
        assert (await running.http.get(f"/v2/{path}")).status_code == 200
    model = (await running.http.get("/v2/models/judged")).json()
    assert (await running.http.get(f"/v2/models/judged/versions/{__version__}")).json() == model
    assert [one["name"] for one in model["inputs"]] == ["IMAGE", "PROMPT", "METADATA"]
    assert [one["name"] for one in model["outputs"]] == ["SCORE", "length"]
    for path in ("/v2/models/other", "/v2/models/judged/versions/7", "/v2/models/other/ready"):
        response = await running.http.get(path)
        assert response.status_code == 404
        assert "MODEL_NOT_FOUND" in response.json()["error"]
    running.service.state = State.DRAINING
    for path in ("health/ready", "models/judged/ready"):
        assert (await running.http.get(f"/v2/{path}")).status_code == 400
    assert (await running.http.get("/v2/health/live")).status_code == 200


async def test_json(serve, pixels, texts, values):
    running = await serve()
    metadata = [json.dumps({"n": 1}), ""]
    body = {
        "id": "call-7",
        "inputs": [
            _bytes("IMAGE", texts[:2]),
            _bytes("PROMPT", ["ü", ""]),
            _bytes("METADATA", metadata),
        ],
    }
    answer = (await running.http.post(INFER, json=body)).json()
    assert answer == {
        "model_name": "judged",
        "model_version": __version__,
        "id": "call-7",
        "outputs": [
            {"name": "SCORE", "datatype": "FP64", "shape": [2], "data": values[:2]},
            {"name": "length", "datatype": "FP64", "shape": [2], "data": [1.0, 0.0]},
        ],
    }
    assert sorted(running.scorer.metadata, key=str) == [{"n": 1}, {}]  # prepared in any order
    assert await running.counted("oip-http") == {"200": 1}
    nested = {"name": "IMAGE", "datatype": "UINT8", "shape": [2, 8, 6, 3]}
    for data in (pixels[:2].tolist(), pixels[:2].reshape(-1).tolist()):
        body = {"inputs": [{**nested, "data": data}], "outputs": [{"name": "SCORE"}]}
        answer = (await running.http.post(INFER, json=body)).json()
        assert answer["outputs"][0]["data"] == values[:2]
        assert len(answer["outputs"]) == 1


async def test_binary_tensors(serve, pixels, files, values):
    running = await serve()
    raw, prompts = pixels[:2].tobytes(), _elements(b"a", b"bc")
    header = {
        "inputs": [
            _binary("IMAGE", "UINT8", [2, 8, 6, 3], len(raw)),
            _binary("PROMPT", "BYTES", [2, 1], len(prompts)),
        ],
        "outputs": [{"name": "length"}, {"name": "SCORE", "parameters": {"binary_data": True}}],
    }
    response = await running.http.post(INFER, **_framed(header, raw, prompts))
    end = int(response.headers[LENGTH])
    length, score = json.loads(response.content[:end])["outputs"]
    assert length["data"] == [1.0, 2.0]
    assert score["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(response.content[end:], "<f8").tolist() == values[:2]
    encoded = _elements(*files[:3])
    header = {
        "inputs": [_binary("IMAGE", "BYTES", [3], len(encoded))],
        "parameters": {"binary_data_output": True, "priority": 9, "timeout": 5_000_000},
    }
    response = await running.http.post(INFER, **_framed(header, encoded))
    end = int(response.headers[LENGTH])
    assert np.frombuffer(response.content[end:][:24], "<f8").tolist() == values[:3]


IMAGE = _bytes("IMAGE", ["aGVsbG8="])
BAD = [
    ({"inputs": []}, 400, "the input IMAGE is missing"),
    ({"inputs": [IMAGE, IMAGE]}, 400, "each once"),
    ({"inputs": [IMAGE, _bytes("TEXT", ["a"])]}, 400, "inputs are IMAGE, PROMPT, METADATA"),
    ({"inputs": [{**IMAGE, "shape": [2]}]}, 422, "IMAGE has 1 elements, its shape is [2]"),
    ({"inputs": [{**IMAGE, "datatype": "FP32"}]}, 400, "IMAGE cannot be FP32"),
    ({"inputs": [{**IMAGE, "datatype": "UINT8", "data": [1, 2]}]}, 422, "[N, H, W, 3]"),
    (
        {"inputs": [{**IMAGE, "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2]}]},
        422,
        "IMAGE_SHAPE",
    ),
    (
        {"inputs": [{**IMAGE, "datatype": "UINT8", "shape": [10**12, 1, 1, 3], "data": [1]}]},
        422,
        "needs 3000000000000",
    ),
    ({"inputs": [{**IMAGE, "datatype": "UINT8", "data": [1, 256]}]}, 400, "from 0 to 255"),
    ({"inputs": [{**IMAGE, "datatype": "UINT8", "data": [0.5]}]}, 400, "from 0 to 255"),
    ({"inputs": [{**IMAGE, "datatype": "UINT8", "data": [[1], [1, 2]]}]}, 400, "from 0 to 255"),
    ({"inputs": [{**IMAGE, "data": [1]}]}, 400, "must be strings"),
    ({"inputs": [{**IMAGE, "shape": [-1]}]}, 400, "shape"),
    ({"inputs": [IMAGE, _bytes("PROMPT", ["a", "b"])]}, 422, "2 prompts for 1 images"),
    ({"inputs": [IMAGE, _bytes("PROMPT", ["\ud800"])]}, 400, "not valid JSON"),
    ({"inputs": [IMAGE, _bytes("METADATA", ["[]"])]}, 422, "no JSON object"),
    ({"inputs": [IMAGE, _bytes("METADATA", ["{"])]}, 422, "no JSON"),
    ({"inputs": [IMAGE], "parameters": {"priority": "high"}}, 400, "priority"),
    ({"inputs": [IMAGE], "parameters": {"timeout": -1}}, 400, "timeout"),
    ({"inputs": [_binary("IMAGE", "BYTES", [1], 10)]}, 400, "binary_data_size is 10"),
    ({"inputs": [_binary("IMAGE", "BYTES", [1], "x")]}, 400, "binary_data_size"),
    ({"inputs": [IMAGE]}, 422, "1 of 1 items have no score; item 0: IMAGE_DECODE"),
    ([], 400, "INVALID_REQUEST"),
]


async def test_bad_requests(serve):
    running = await serve()
    for body, status, words in BAD:
        response = await running.http.post(INFER, content=json.dumps(body))
        assert response.status_code == status, (body, response.text)
        assert words in response.json()["error"], body


async def test_bad_framing(serve, texts):
    running = await serve()
    header = {"inputs": [_bytes("IMAGE", texts[:1])]}
    for framed, words in (
        (_framed(header, b"more"), "goes on for 4 bytes"),
        ({"content": b"{}", "headers": {LENGTH: "3"}}, "the body has 2 bytes"),
        ({"content": b"{}", "headers": {LENGTH: "x"}}, "must be an integer"),
    ):
        response = await running.http.post(INFER, **framed)
        assert response.status_code == 400
        assert words in response.json()["error"]
    response = await running.http.post(INFER, content=b"", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    body = {**header, "outputs": [{"name": "beauty"}]}
    response = await running.http.post(INFER, json=body)
    assert "there is no output 'beauty'; outputs are SCORE, length" in response.json()["error"]
    assert (await running.http.post("/v2/models/other/infer", json=header)).status_code == 404


async def test_a_failed_item_fails_the_call_and_is_named(serve, texts):
    running = await serve()
    prompts = ["a", "later", "broken", "broken"]
    body = {"inputs": [_bytes("IMAGE", texts[:4]), _bytes("PROMPT", prompts)]}
    response = await running.http.post(INFER, json=body)
    # not 503: the same batch would fail again
    assert response.status_code == 500
    for words in ("3 of 4 items", "item 1: OUT_OF_MEMORY", "item 2: MODEL_ERROR", "item 3"):
        assert words in response.json()["error"]


async def test_a_deadline_as_parameter(serve, texts):
    running = await serve()
    body = {"inputs": [_bytes("IMAGE", texts[:1])], "parameters": {"timeout": 1}}
    response = await running.http.post(INFER, json=body)
    assert response.status_code == 504


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_elements_are_split_as_they_were_joined(entries):
    assert split_elements(memoryview(_elements(*entries))) == entries


@given(st.binary(max_size=30))
def test_any_bytes_are_elements_or_refused(raw):
    try:
        elements = split_elements(memoryview(raw))
    except InvalidRequest:
        return
    assert _elements(*map(bytes, elements)) == raw


# gRPC


async def _call(running, method, request, answer=None, **options):
    async with grpc.aio.insecure_channel(running.target) as channel:
        call = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString if answer else None,
        )
        return await call(request, timeout=20, **options)


async def _refused(running, method, request, **options):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _call(running, method, request, **options)
    return caught.value.code(), caught.value.details() or ""


def _infer(*inputs, **fields):
    return pb.ModelInferRequest(model_name="judged", inputs=inputs, **fields)


def _input(name, datatype, shape, **contents):
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return tensor


async def test_grpc_contents_and_raw(serve, pixels, files, values):
    running = await serve()
    shape = [2, 8, 6, 3]
    typed = _infer(
        _input("IMAGE", "UINT8", shape, uint_contents=pixels[:2].reshape(-1).tolist()),
        _input("PROMPT", "BYTES", [2], bytes_contents=[b"a", b"bc"]),
        id="x",
    )
    raw = _infer(
        _input("IMAGE", "UINT8", shape),
        _input("PROMPT", "BYTES", [2]),
        id="x",
        raw_input_contents=[pixels[:2].tobytes(), _elements(b"a", b"bc")],
    )
    typed_answer = await _call(running, "ModelInfer", typed, pb.ModelInferResponse)
    raw_answer = await _call(running, "ModelInfer", raw, pb.ModelInferResponse)
    assert typed_answer == raw_answer
    assert [output.name for output in raw_answer.outputs] == ["SCORE", "length"]
    assert np.frombuffer(raw_answer.raw_output_contents[0], "<f8").tolist() == values[:2]
    assert (raw_answer.id, raw_answer.model_version) == ("x", __version__)
    encoded = _infer(_input("IMAGE", "BYTES", [6], bytes_contents=files))
    encoded.parameters["priority"].int64_param = 1
    encoded.outputs.add(name="SCORE")
    answer = await _call(running, "ModelInfer", encoded, pb.ModelInferResponse)
    assert np.frombuffer(answer.raw_output_contents[0], "<f8").tolist() == values
    assert await running.counted("oip-grpc") == {"OK": 3}


async def test_grpc_errors(serve, files):
    running = await serve()
    code = grpc.StatusCode
    image = _input("IMAGE", "BYTES", [1], bytes_contents=files[:1])
    broken = _input("PROMPT", "BYTES", [1], bytes_contents=[b"broken"])
    pixel = _input("IMAGE", "UINT8", [1, 1, 1, 1], uint_contents=[256])
    negative = _input("IMAGE", "UINT8", [-1, 1, 1, 3], uint_contents=[1, 2, 3])
    timeout = _infer(image)
    timeout.parameters["timeout"].int64_param = 1
    for request, status, words in (
        (_infer(image, broken), code.INTERNAL, "item 0: MODEL_ERROR"),
        (_infer(), code.INVALID_ARGUMENT, "IMAGE is missing"),
        (_infer(pixel), code.INVALID_ARGUMENT, "from 0 to 255"),
        (_infer(negative), code.INVALID_ARGUMENT, "[N, H, W, 3]"),
        (_infer(image, raw_input_contents=[b"", b""]), code.INVALID_ARGUMENT, "2 raw_input"),
        (_infer(image, raw_input_contents=[b"abc"]), code.INVALID_ARGUMENT, "length of an element"),
        (pb.ModelInferRequest(model_name="x", inputs=[image]), code.NOT_FOUND, "judged"),
        (_infer(image, model_version="9"), code.NOT_FOUND, "version"),
        (timeout, code.DEADLINE_EXCEEDED, ""),
    ):
        assert (found := await _refused(running, "ModelInfer", request))[0] == status, found
        assert words in found[1]
    found = await _refused(running, "ModelReady", pb.ModelReadyRequest(name="x"))
    assert found[0] == code.NOT_FOUND
    found = await _refused(running, "ModelMetadata", pb.ModelMetadataRequest(name="x"))
    assert found[0] == code.NOT_FOUND
    # a field of another wire type
    found = await _refused(running, "ModelInfer", pb.ServerLiveResponse(live=True))
    assert found[0] in (code.INVALID_ARGUMENT, code.NOT_FOUND)


async def test_grpc_readiness_and_tokens(serve):
    running = await serve(token="secret")
    live = pb.ServerLiveRequest()
    assert (await _refused(running, "ServerLive", live))[0] == grpc.StatusCode.UNAUTHENTICATED
    allowed = {"metadata": [("authorization", "Bearer secret")]}
    answer = await _call(running, "ServerLive", live, pb.ServerLiveResponse, **allowed)
    assert answer.live
    running.service.state = State.DRAINING
    answer = await _call(
        running, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse, **allowed
    )
    assert not answer.ready


async def test_grpc_can_be_turned_off(serve):
    running = await serve(dialects="unirl")
    found = await _refused(running, "ServerLive", pb.ServerLiveRequest())
    assert found[0] == grpc.StatusCode.UNIMPLEMENTED


async def test_a_large_grpc_body(serve):
    running = await serve()
    pictures = np.full((2, 400, 400, 3), 51, np.uint8)
    request = _infer(
        _input("IMAGE", "UINT8", pictures.shape), raw_input_contents=[pictures.tobytes()]
    )
    answer = await _call(running, "ModelInfer", request, pb.ModelInferResponse)
    scores = np.frombuffer(answer.raw_output_contents[0], "<f8")
    assert math.isclose(scores[0], 0.2)


# What KServe's and Triton's clients ask beside that
