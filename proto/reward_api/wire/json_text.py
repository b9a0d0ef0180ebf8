"""JSON from a caller, within bounds that no request comes near.

Python turns a body into objects in one go, and answers nothing else meanwhile: 3 MB of `{},{},...` as
items would take 3 s and 620 MB, and a body may be twenty times as large. So what a body holds is counted
before it is read. The characters that are counted do not occur in base64, and images cost nothing here.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from reward_api.errors import InvalidRequest, Reason

MAX_CONTAINERS = 131_072
"""Most objects and lists in a body."""
MAX_VALUES = 1_048_576
"""Most commas, and so most values."""
MAX_LIST = 16_384
"""Most entries of a list of the outermost object, as `items` or `prompts`."""
MAX_KEYS = 64
"""Most members of the outermost object, and of the objects in its lists."""

_PIECE = 1 << 20


def read_json(text: bytes | memoryview, *, max_values: int = MAX_VALUES) -> Any:
    """The value of a body that becomes a message. Raises InvalidRequest: no JSON, or
    REQUEST_TOO_LARGE."""
    value = values_of(text, max_values=max_values)
    _check_width(value)
    return value


def values_of(text: bytes | memoryview, *, max_values: int = MAX_VALUES) -> Any:
    """The value of any JSON text, without NaN, lone surrogates or bottomless nesting (jiter sees to
    that). Raises InvalidRequest as `read_json`."""
    text = bytes(text)
    _check(text, b"{[", MAX_CONTAINERS, "objects and lists")
    _check(text, b",", max_values, "values")
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(Reason.INVALID_REQUEST, f"not valid JSON: {error}") from None


def _check(text: bytes, characters: bytes, limit: int, what: str) -> None:
    found = 0
    for start in range(0, len(text), _PIECE):
        piece = text[start : start + _PIECE]
        found += sum(piece.count(character) for character in characters)
        if found > limit:
            raise _too_large(f"the JSON holds more than {limit} {what}")


def _check_width(value: Any) -> None:
    """What is wrong with each entry is found and described before it can be refused: bounded too."""
    if not isinstance(value, dict):
        return
    _check_keys(value)
    for name, inner in value.items():
        if isinstance(inner, list):
            if len(inner) > MAX_LIST:
                raise _too_large(f"{name[:64]} has {len(inner)} entries; {MAX_LIST} at most")
            for entry in inner:
                if isinstance(entry, dict):
                    _check_keys(entry)


def _check_keys(node: dict[str, Any]) -> None:
    if len(node) > MAX_KEYS:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"an object has {len(node)} members; no message has so many"
        )


def _too_large(what: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.REQUEST_TOO_LARGE, f"{what}: send fewer items per request, and pixels in binary"
    )
