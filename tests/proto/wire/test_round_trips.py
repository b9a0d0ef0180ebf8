"""Every message survives each form it travels in; damaged and random bodies never crash."""

from hypothesis import given
from hypothesis import strategies as st

from reward_api.errors import InvalidRequest, ItemFailure, Reason
from reward_api.wire import convert
from reward_api.wire.framing import LENGTH_HEADER, decode_json, decode_request, encode_request
from reward_api.wire.messages import (
    Image,
    Item,
    ItemError,
    ItemResult,
    ItemScore,
    PackedImages,
    RewardMetadata,
    ScoreRange,
    ScoreRequest,
    ScoreResponse,
    Timing,
)
from reward_api.wire.v1 import reward_pb2 as pb

text = st.text(max_size=8)  # without lone surrogates: neither JSON nor protobuf can carry them
number = st.floats(allow_nan=False, allow_infinity=False)
uint32 = st.integers(0, 2**32 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(text, json_values, max_size=3)
images = st.one_of(
    st.builds(Image, data=st.binary(max_size=16)),
    st.builds(
        Image,
        data=st.binary(max_size=16),
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        channels=st.sampled_from([1, 3]),
    ),
)
packed_images = st.builds(
    PackedImages,
    data=st.binary(max_size=16),
    count=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
)
items = st.builds(
    Item, id=text, prompt=text, image=st.none() | images, metadata=st.just({}) | json_objects
)
requests = st.builds(
    ScoreRequest,
    model=text,
    request_id=text,
    items=st.lists(items, max_size=4),
    packed_images=st.none() | packed_images,
    priority=st.integers(0, 3),
    include_details=st.booleans(),
)
scores = st.builds(
    ItemScore,
    value=number,
    scores=st.dictionaries(text, number, max_size=3),
    details=st.none() | json_objects,
)
errors = st.builds(
    lambda reason, message: ItemError.of(ItemFailure(reason, message)),
    st.sampled_from(Reason),
    text,
)
results = st.builds(ItemResult, id=text, score=scores) | st.builds(
    ItemResult, id=text, error=errors
)
timings = st.builds(Timing, queue_ms=number, decode_ms=number, inference_ms=number, total_ms=number)
responses = st.builds(
    ScoreResponse,
    model=text,
    version=text,
    revision=text,
    request_id=text,
    results=st.lists(results, max_size=4),
    timing=timings,
    batch_sizes=st.lists(uint32, max_size=4),
)
ranges = st.builds(
    ScoreRange,
    name=text,
    minimum=st.none() | number,
    maximum=st.none() | number,
    higher_is_better=st.booleans(),
    description=text,
)
reward_metadata = st.builds(
    RewardMetadata,
    name=text,
    version=text,
    revision=text,
    description=text,
    score=ranges,
    sub_scores=st.lists(ranges, max_size=2),
    prompt_required=st.booleans(),
    metadata_schema=text,
    encodings=st.lists(text, max_size=3),
    limits=st.dictionaries(text, st.integers(-(2**63), 2**63 - 1), max_size=3),
    settings=st.dictionaries(text, text, max_size=3),
    device=text,
    license=text,
)


def joined(request: ScoreRequest) -> tuple[bytes, int]:
    headers, parts = encode_request(request)
    body = b"".join(parts)
    assert headers["content-length"] == str(len(body))
    return body, int(headers[LENGTH_HEADER])


@given(requests)
def test_requests_as_binary(request_):
    assert decode_request(*joined(request_)) == request_


@given(requests)
def test_requests_as_json(request_):
    assert decode_json(request_.model_dump_json().encode()) == request_


@given(requests)
def test_requests_as_protobuf(request_):
    wire = convert.request_to_proto(request_).SerializeToString()
    assert convert.request_from_proto(pb.ScoreRequest.FromString(wire)) == request_


@given(responses)
def test_responses(response):
    wire = convert.response_to_proto(response).SerializeToString()
    assert convert.response_from_proto(pb.ScoreResponse.FromString(wire)) == response
    assert ScoreResponse.model_validate_json(response.model_dump_json()) == response


@given(reward_metadata)
def test_metadata(metadata):
    wire = convert.metadata_to_proto(metadata).SerializeToString()
    assert convert.metadata_from_proto(pb.RewardMetadata.FromString(wire)) == metadata
    assert RewardMetadata.model_validate_json(metadata.model_dump_json()) == metadata


@given(requests, st.data())
def test_damaged_bodies_either_decode_or_are_refused(request_, data):
    body, header_length = joined(request_)
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        if not broken:
            break
        at = data.draw(st.integers(0, len(broken) - 1))
        match data.draw(st.sampled_from(["flip", "drop", "cut"])):
            case "flip":
                broken[at] ^= data.draw(st.integers(1, 255))
            case "drop":
                del broken[at]
            case "cut":
                del broken[at:]
    length = header_length + data.draw(st.integers(-2, 2))
    decoded = refused = None
    try:
        decoded = decode_request(bytes(broken), length)
    except InvalidRequest as error:
        refused = error
    assert isinstance(decoded, ScoreRequest) or refused


@given(st.binary(max_size=200), st.integers(-1, 201))
def test_noise_either_decodes_or_is_refused(body, length):
    decoded = refused = None
    try:
        decoded = decode_request(body, length)
    except InvalidRequest as error:
        refused = error
    assert isinstance(decoded, ScoreRequest) or refused
