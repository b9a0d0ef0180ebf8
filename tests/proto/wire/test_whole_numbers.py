"""The same metadata reaches a reward alike over every protocol."""

import pytest

from reward_api.wire.convert import request_from_proto, request_to_proto
from reward_api.wire.framing import decode_json
from reward_api.wire.messages import Image, Item, ScoreRequest

METADATA = {"n": 2.0, "deep": [{"count": 3.0, "x": 2.5}], "big": 2.0**60, "yes": True, "none": None}
READ = {"n": 2, "deep": [{"count": 3, "x": 2.5}], "big": 2.0**60, "yes": True, "none": None}


@pytest.mark.parametrize("protocol", ["in process", "json", "proto"])
def test_a_float_without_a_fraction_is_an_integer(protocol):
    request = ScoreRequest(items=[Item(prompt="x", image=Image(data=b"1"), metadata=METADATA)])
    if protocol == "json":
        request = decode_json(memoryview(request.model_dump_json().encode()))
    if protocol == "proto":
        request = request_from_proto(request_to_proto(request))
    read = request.items[0].metadata
    assert read == READ
    assert [type(read["n"]), type(read["deep"][0]["count"])] == [int, int]
    assert read["yes"] is True
