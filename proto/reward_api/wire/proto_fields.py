"""The fields of a serialized protobuf message, looked at without protobuf.

protobuf makes an object of every message within a message, two bytes each when they are empty, and lets
nothing else of the process run meanwhile. So a caller's bytes are walked first, field by field, and
refused when there are more fields than any request has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from reward_api.errors import InvalidRequest, Reason

MAX_FIELDS = 131_072
"""Most fields of a message and of the messages within it."""
MAX_FREE_BYTES = 4 * 2**20
"""Most bytes of free-form values (Struct), in all."""

FREE: Final = "free"
"""A message of any depth: its bytes count, not its fields."""

Within = Mapping[int, Any]
"""By field number: what a message within has in it, a Within again; or FREE."""


def check_fields(data: bytes | memoryview, within: Within) -> None:
    """Raises InvalidRequest: not well-formed, or REQUEST_TOO_LARGE."""
    try:
        _Walk().message(memoryview(data), within)
    except (IndexError, ValueError) as error:
        raise InvalidRequest(Reason.INVALID_REQUEST, f"not a protobuf message: {error}") from None


class _Walk:
    def __init__(self) -> None:
        self._fields = self._free_bytes = 0

    def message(self, view: memoryview, within: Within) -> None:
        position = 0
        while position < len(view):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _too_large(f"the message has more than {MAX_FIELDS} fields")
            tag, content, position = field_at(view, position)
            if position > len(view):
                raise ValueError("it ends within a field")
            inner = within.get(tag >> 3) if tag & 7 == 2 else None
            if inner is FREE:
                self._free_bytes += position - content
                if self._free_bytes > MAX_FREE_BYTES:
                    raise _too_large(f"metadata take more than {MAX_FREE_BYTES} bytes")
            elif inner is not None:
                self.message(view[content:position], inner)


def field_at(view: memoryview, position: int) -> tuple[int, int, int]:
    """The tag of the field that starts there, where its content starts and where that ends. Raises
    IndexError, ValueError."""
    tag, position = varint(view, position)
    match tag & 7:
        case 0:
            return tag, position, varint(view, position)[1]
        case 1:
            return tag, position, position + 8
        case 2:
            length, position = varint(view, position)
            return tag, position, position + length
        case 5:
            return tag, position, position + 4
        case _:
            raise ValueError("a group")


def varint(view: memoryview, position: int) -> tuple[int, int]:
    """The number that starts there, and where it ends. Raises IndexError, ValueError."""
    number = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number of more than ten bytes")


def _too_large(what: str) -> InvalidRequest:
    return InvalidRequest(Reason.REQUEST_TOO_LARGE, f"{what}: send fewer items per request")
