"""Packed images are taken out of a serialized request without protobuf: same result, fewer copies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_api.wire.convert import request_from_proto, serialize_request, split_request
from reward_api.wire.messages import Item, PackedImages, ScoreRequest
from reward_api.wire.v1 import reward_pb2 as pb

requests = st.builds(
    ScoreRequest,
    model=st.text(max_size=5),
    request_id=st.text(max_size=5),
    items=st.lists(st.builds(Item, id=st.text(max_size=5), prompt=st.text(max_size=200))),
    packed_images=st.builds(
        PackedImages,
        data=st.binary(max_size=400),
        count=st.integers(1, 2**32 - 1),
        height=st.integers(1, 300),
        width=st.integers(1, 300),
        channels=st.sampled_from([1, 3]),
    ),
    priority=st.integers(0, 3),
)


@given(requests)
def test_the_parts_are_the_whole(request_):
    data = serialize_request(request_)
    rest, packed = split_request(data)
    whole = request_from_proto(pb.ScoreRequest.FromString(data))
    without = request_from_proto(pb.ScoreRequest.FromString(rest))
    assert without.packed_images is None
    if request_.packed_images.data:
        assert packed is not None
        assert packed.data.obj is data, "a slice, not a copy"
        assert without.model_copy(update={"packed_images": packed}) == whole
    else:  # proto3 may leave empty fields out
        assert packed in (None, whole.packed_images)


def test_unknown_fields_of_all_kinds_are_skipped():
    unknown = bytes([15 << 3 | 0, 0x80, 1]) + bytes([14 << 3 | 1]) + bytes(8)
    unknown += bytes([13 << 3 | 5]) + bytes(4) + bytes([12 << 3 | 2, 3]) + b"abc"
    packed = PackedImages(data=b"abc", count=1, height=1, width=1)
    data = serialize_request(ScoreRequest(items=[Item(id="a")], packed_images=packed))
    rest, found = split_request(unknown + data + unknown)
    assert found is not None
    assert bytes(found.data) == b"abc"
    assert request_from_proto(pb.ScoreRequest.FromString(rest)).items == [Item(id="a")]


@pytest.mark.parametrize(
    "message",
    [
        pb.ScoreRequest(model="x"),
        pb.ScoreRequest(packed_images=pb.PackedImages(count=1)),
        pb.ScoreRequest(packed_images=pb.PackedImages(data=b"abc")),
    ],
    ids=["no images", "no data", "a shape that the contract refuses"],
)
def test_what_is_unusual_is_left_to_protobuf(message):
    data = message.SerializeToString()
    assert split_request(data) == (data, None)


def test_a_repeated_field_is_left_to_protobuf():
    """It merges them: the last one wins, field by field."""
    images = pb.PackedImages(data=b"abc", count=1, height=1, width=1)
    data = pb.ScoreRequest(packed_images=images).SerializeToString()
    assert split_request(data + data) == (data + data, None)


def test_thousands_of_fields_are_left_to_protobuf():
    images = pb.PackedImages(data=b"abc", count=1, height=1, width=1)
    data = pb.ScoreRequest(packed_images=images).SerializeToString()
    many = pb.ScoreRequest(priority=1).SerializeToString() * 5000
    assert split_request(data + many) == (data + many, None)


@given(st.binary(max_size=60))
def test_any_bytes_are_taken(data):
    rest, packed = split_request(data)
    assert packed is None or len(rest) + len(packed.data) < len(data)
    assert packed is not None or rest == data


def test_a_truncated_message_is_left_to_protobuf():
    packed = PackedImages(data=b"abcdef", count=1, height=1, width=2)
    data = serialize_request(ScoreRequest(items=[], packed_images=packed))
    for end in range(1, len(data)):
        assert split_request(data[:end]) == (data[:end], None)
