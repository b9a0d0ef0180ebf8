"""Bodies that would become more objects than any request holds are refused before they do."""

import json

import pytest

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.convert import REQUEST_FIELDS, serialize_request
from reward_api.wire.framing import decode_json
from reward_api.wire.json_text import MAX_CONTAINERS, MAX_KEYS, MAX_LIST, MAX_VALUES, values_of
from reward_api.wire.messages import Image, Item, ScoreRequest
from reward_api.wire.proto_fields import MAX_FIELDS, MAX_FREE_BYTES, check_fields


def _reason(check, *arguments):
    with pytest.raises(InvalidRequest) as caught:
        check(*arguments)
    return caught.value.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"items":[' + b"{}," * MAX_CONTAINERS + b"{}]}", Reason.REQUEST_TOO_LARGE),
        (b"[" * (MAX_CONTAINERS + 1), Reason.REQUEST_TOO_LARGE),
        (b'{"items":[' + b"1," * MAX_VALUES + b"1,1]}", Reason.REQUEST_TOO_LARGE),
        (b'{"items":[' + b"{}," * MAX_LIST + b"{}]}", Reason.REQUEST_TOO_LARGE),
        (json.dumps(dict.fromkeys(map(str, range(MAX_KEYS + 1)))).encode(), Reason.INVALID_REQUEST),
        (
            json.dumps({"items": [dict.fromkeys(map(str, range(MAX_KEYS + 1)))]}).encode(),
            Reason.INVALID_REQUEST,
        ),
    ],
)
def test_json(body, reason):
    assert _reason(decode_json, body) == reason


def test_json_of_any_size_within_the_bounds():
    metadata = {str(i): [i, {"a": None}] for i in range(5000)}
    request = decode_json(json.dumps({"items": [{"metadata": metadata}]}).encode())
    assert request.items[0].metadata == metadata
    many = decode_json(b'{"items":[' + b"{}," * (MAX_LIST - 1) + b"{}]}")
    assert len(many.items) == MAX_LIST
    assert len(values_of(b"[" + b"0," * MAX_VALUES + b"0]")) == MAX_VALUES + 1


def _field(number, content):
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


EMPTY = bytes([3 << 3 | 2, 0])  # an item of two bytes


@pytest.mark.parametrize(
    "message",
    [
        EMPTY * (MAX_FIELDS + 1),
        _field(3, bytes([1 << 3 | 2, 0]) * (MAX_FIELDS + 1)),  # an item of many ids
        _field(3, _field(3, bytes([1 << 3 | 2, 0]) * (MAX_FIELDS + 1))),  # its image
        _field(4, bytes([2 << 3, 1]) * (MAX_FIELDS + 1)),  # packed images
        _field(3, _field(4, bytes(MAX_FREE_BYTES + 1))),  # metadata
        _field(3, _field(4, bytes(MAX_FREE_BYTES // 4))) * 5,
    ],
)
def test_protobuf(message):
    assert _reason(check_fields, message, REQUEST_FIELDS) == Reason.REQUEST_TOO_LARGE


@pytest.mark.parametrize("message", [b"\x1b", b"\x0a\x05ab", b"\xff" * 11, b"\x08"])
def test_protobuf_that_is_none(message):
    assert _reason(check_fields, message, REQUEST_FIELDS) == Reason.INVALID_REQUEST


def test_a_request_passes():
    image = Image(data=bytes(400_000))
    items = [Item(id=str(i), image=image, metadata={"a": [i] * 20}) for i in range(300)]
    check_fields(serialize_request(ScoreRequest(items=items)), REQUEST_FIELDS)
