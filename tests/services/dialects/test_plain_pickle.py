"""The pickle reader: what it reads as Python does, and what it refuses."""

import contextlib
import io
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_api.errors import InvalidRequest
from reward_services.dialects.plain_pickle import MAX_STEPS, read_plain_pickle

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text(), inner)
    ),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN, st.integers(3, 5))
def test_plain_values_are_read_as_python_reads_them(value, protocol):
    assert read_plain_pickle(pickle.dumps(value, protocol)) == value


def test_protocol_2_is_read_without_bytes():
    value = {"prompts": ["ü"], "n": [1, -70_000, 2**70, 0.5, True, None], "t": ((), (1, 2, 3, 4))}
    assert read_plain_pickle(pickle.dumps(value, 2)) == value
    with pytest.raises(InvalidRequest, match="GLOBAL"):  # there, bytes are a call
        read_plain_pickle(pickle.dumps({"images": [b"x"]}, 2))


def test_shared_values_are_shared():
    metadata = {"tag": "counting", "include": [{"class": "cup", "count": 2}]}
    value = {"meta_datas": [metadata] * 9}
    read = read_plain_pickle(pickle.dumps(value, 4))
    assert read == value
    assert read["meta_datas"][0] is read["meta_datas"][8]


def test_large_bytes_are_read():
    value = {"images": [bytes(range(256)) * 4096, b""]}
    assert read_plain_pickle(memoryview(pickle.dumps(value, 5))) == value


class Harmless:
    """What a hostile body does: unpickling calls a function."""

    called = False

    def __reduce__(self):
        return (setattr, (Harmless, "called", True))


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_called(protocol):
    with pytest.raises(InvalidRequest, match="instruction"):
        read_plain_pickle(pickle.dumps([Harmless()], protocol))
    assert not Harmless.called


GLOBALS = [
    b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL and REDUCE
    b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
    b"(S'true'\nios\nsystem\n.",  # INST
    b"\x80\x02cbuiltins\nobject\n)\x81.",  # NEWOBJ
    b"\x80\x02\x82\x01.",  # EXT1
    b"Pid\n.",  # PERSID
    b"\x80\x02}}b.",  # BUILD
    b"\x80\x05\x97.",  # NEXT_BUFFER
]


@pytest.mark.parametrize("body", GLOBALS)
def test_every_way_to_a_name_is_refused(body):
    with pytest.raises(InvalidRequest):
        read_plain_pickle(body)


@pytest.mark.parametrize(
    "value", [np.arange(3), np.float32(1), {1, 2}, frozenset(), 1j, bytearray(b"x"), range(3)]
)
def test_other_kinds_are_refused(value):
    with pytest.raises(InvalidRequest, match="only dicts, lists, tuples"):
        read_plain_pickle(pickle.dumps({"images": value}, 5))


MALFORMED = [
    b"",
    b".",
    b"not a pickle",
    b"\x80\x04",
    b"\x80\x04N",
    b"\x80\x04NN.",
    b"\x80\x04e.",
    b"\x80\x04(.",
    b"\x80\x04]a.",
    b"\x80\x04Nh\x07.",
    b"\x80\x04}(Nu.",  # a key without a value
    b"\x80\x04}]Ns.",  # a list as a key
    b"\x80\x04}K\x01Ns.",  # a number as a key
    b"\x80\x04N(Ne.",  # appended to None
    b"\x80\x04\x85.",
    b"\x80\x04\x8c\x05ab.",
    b"\x80\x04\x8c\x01\xff.",
    b"I" + b"9" * 10_000 + b"\n.",
    pickle.dumps({"images": [b"x" * 100]})[:-20],
]


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_bodies_are_refused(body):
    with pytest.raises(InvalidRequest):
        read_plain_pickle(body)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_refusal(body):
    with contextlib.suppress(InvalidRequest):
        value = read_plain_pickle(b"\x80\x04" + body)
        assert type(value) in (dict, list, tuple, str, bytes, int, float, bool, type(None))


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",  # a memo of 4 billion entries
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b".",  # 4 GB of bytes that do not follow
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",  # a frame of 1 TB
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b".",  # LONG4
    ],
)
def test_numbers_in_the_stream_reserve_no_memory(body):
    tracemalloc.start()
    with contextlib.suppress(InvalidRequest):
        read_plain_pickle(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_lists_of_lists_of_the_same_list_are_refused():
    value = ["x"]
    for _ in range(30):
        value = [value] * 30
    with pytest.raises(InvalidRequest, match=str(MAX_STEPS)):
        read_plain_pickle(pickle.dumps(value))


def test_a_list_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(InvalidRequest, match="itself"):
        read_plain_pickle(pickle.dumps(value))


def test_a_wide_list_that_holds_itself_takes_no_memory():
    value = []
    value += [value] * (MAX_STEPS // 2)
    body = pickle.dumps(value)
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="itself"):
        read_plain_pickle(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * len(body)


def test_long_programs_are_refused():
    file = io.BytesIO()
    file.write(b"\x80\x04]" + b"Na" * MAX_STEPS + b".")
    with pytest.raises(InvalidRequest, match="instructions"):
        read_plain_pickle(file.getvalue())
