import base64
import json

import pytest

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.framing import LENGTH_HEADER, decode_json, decode_request, encode_request
from reward_api.wire.messages import Image, Item, PackedImages, ScoreRequest


def image_of(request: ScoreRequest, index: int = 0) -> Image:
    image = request.items[index].image
    assert image is not None
    return image


def joined(request: ScoreRequest) -> tuple[bytes, int]:
    headers, parts = encode_request(request)
    body = b"".join(parts)
    assert headers["content-length"] == str(len(body))
    return body, int(headers[LENGTH_HEADER])


def test_neither_side_copies_pixels():
    pixels = bytearray(range(12))
    request = ScoreRequest(items=[Item(image=Image(data=memoryview(pixels), height=2, width=2))])
    _, parts = encode_request(request)
    assert isinstance(parts[1], memoryview)
    assert parts[1].obj is pixels
    body = b"".join(parts)
    image = image_of(decode_request(body, len(parts[0])))
    assert image.data.obj is body
    assert image.data == pixels


def test_packed_bytes_come_first():
    request = ScoreRequest(
        items=[Item(image=Image(data=b"later"))],
        packed_images=PackedImages(data=b"first!", count=1, height=1, width=2),
    )
    body, header_length = joined(request)
    assert body[header_length:] == b"first!later"


def test_an_image_may_stay_inline():
    header = json.dumps(
        {
            "items": [
                {"image": base64.b64encode(b"inline").decode()},
                {"image": {"binary_data_size": 2}},
            ]
        }
    ).encode()
    request = decode_request(header + b"ab", len(header))
    assert [bytes(image_of(request, i).data) for i in range(2)] == [b"inline", b"ab"]


@pytest.mark.parametrize(
    ("header", "tail", "length", "message"),
    [
        ({"items": []}, b"", 0, "must count the JSON"),
        ({"items": []}, b"", -1, "must count the JSON"),
        ({"items": []}, b"", 10_000, "must count the JSON"),
        ({"items": []}, b"x", None, "goes on for 1 bytes"),
        ({"items": [{"image": {"binary_data_size": 5}}]}, b"1234", None, "ends 1 bytes before"),
        ({"items": [{"image": {"binary_data_size": -1}}]}, b"", None, "binary_data_size"),
        ({"items": [{"image": {"binary_data_size": 2**63}}]}, b"", None, "bytes before"),
        (
            {"items": [{"image": {"binary_data_size": 1, "data": "QQ=="}}]},
            b"1",
            None,
            "either data or binary_data_size",
        ),
        ({"items": [{"image": {"height": 3}}]}, b"", None, "both height and width"),
        ({"items": "many"}, b"", None, "items: Input should be a valid list"),
        ({"items": [], "colour": 1}, b"", None, "colour"),
        ([], b"", None, "body: "),
    ],
)
def test_inconsistent_binary_bodies_are_refused(header, tail, length, message):
    text = json.dumps(header).encode()
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode_request(text + tail, len(text) if length is None else length)
    assert caught.value.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b'{"items": [{"metadata": {"x": NaN}}]}',
        b'{"items": [{"metadata": {"x": Infinity}}]}',
        b'{"items": [{"prompt": "\\ud800"}]}',
        b'{"items": [{"image": "not base64!"}]}',
        b'{"items": [{"image": {"data": "aGk=", "binary_data_size": 2}}]}',
        b'{"items": [{"image": {"data": 5}}]}',
        b'{"items": [{}], "packed_images": {"data": null, "count": 1, "height": 1, "width": 1}}',
        b'{"items": [{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}]}",
        b'{"items": ' + b"[" * 1_000_000,
    ],
)
def test_hostile_json_is_refused(text):
    with pytest.raises(InvalidRequest):
        decode_json(text)


def test_messages_never_echo_the_input():
    with pytest.raises(InvalidRequest) as caught:
        decode_json(b'{"items": [{"image": {"height": "' + b"A" * 100_000 + b'"}}]}')
    assert len(str(caught.value)) < 500
    with pytest.raises(InvalidRequest) as caught:
        decode_json(b'{"items": [], "' + b"A" * 100_000 + b'": 1}')
    assert len(str(caught.value)) < 500
