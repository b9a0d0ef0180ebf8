"""The caller's lists as wire items, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire.messages import Item

_MAX_DEPTH = 16
_MAX_INTEGER = 2**53


def make_items(
    count: int,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any] | None] | None,
    ids: Sequence[str] | None,
) -> list[Item]:
    """One item per image, without the image. Raises InvalidRequest."""
    _check_count("prompts", prompts, count)
    if metadata is not None:
        _check_count("metadata", metadata, count)
    if ids is not None:
        _check_count("ids", ids, count)
    return [
        Item(
            id=str(i) if ids is None else _text(ids[i], f"ids[{i}]"),
            prompt=_text(prompts[i], f"prompts[{i}]"),
            metadata={} if metadata is None else _object(metadata[i], f"metadata[{i}]"),
        )
        for i in range(count)
    ]


def _check_count(name: str, values: Any, count: int) -> None:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise InvalidRequest(
            Reason.COUNT_MISMATCH, f"{name} must be a list with one entry per image"
        )
    if len(values) != count:
        raise InvalidRequest(Reason.COUNT_MISMATCH, f"{len(values)} {name} for {count} images")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"{where} is a {type(value).__name__}, not a str"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            Reason.INVALID_REQUEST, f"{where} is not valid Unicode: {error.reason}"
        ) from None
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            Reason.SCHEMA, f"{where} is a {type(value).__name__}, not a dict or None"
        )
    return _plain(value, where, 1)


def _plain(value: Any, where: str, depth: int) -> Any:
    """`value` as JSON holds it, on every protocol alike (convert.py tells what a Struct loses)."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(Reason.SCHEMA, f"{where} is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case None | bool():
            return value
        case str():
            return _text(value, where)
        case int() if abs(value) <= _MAX_INTEGER:
            return value
        case float() if math.isfinite(value):
            return value
        case int() | float():
            raise InvalidRequest(
                Reason.SCHEMA, f"{where} is {value!r}, which JSON cannot carry; send it as a str"
            )
        case Mapping():
            return {
                _text(key, f"a key of {where}"): _plain(inner, f"{where}[{key!r}]", depth + 1)
                for key, inner in value.items()
            }
        case list() | tuple():
            return [_plain(inner, f"{where}[{i}]", depth + 1) for i, inner in enumerate(value)]
        case _:
            raise InvalidRequest(
                Reason.SCHEMA, f"{where} is a {type(value).__name__}, not a JSON value"
            )
