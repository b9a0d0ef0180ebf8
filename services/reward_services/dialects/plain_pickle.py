"""Reads pickles that hold nothing but dicts, lists, tuples, strings, bytes, numbers, True, False and
None.

A pickle is a program. This interpreter knows the instructions that build those values and no other:
none that looks up a name, calls, or sets attributes, so there is nothing that a body could execute.
Python's own Unpickler, even with `find_class` refused, also sizes tables and buffers by numbers in
the stream, so that a body of ten bytes takes gigabytes; here memory is in proportion to the body.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

from reward_api.errors import InvalidRequest, Reason

MAX_STEPS = 200_000
"""Most instructions, and most values once shared ones are counted as often as they occur."""

_LITERALS = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_plain_pickle(data: bytes | memoryview) -> Any:
    """The value of a pickle of protocol 2 to 5. Raises InvalidRequest."""
    machine = _Machine()
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if steps >= MAX_STEPS:
                raise _invalid(f"the pickle has more than {MAX_STEPS} instructions")
            machine.step(opcode.name, argument)
        value = machine.result()
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise _invalid(f"not a whole pickle: {type(error).__name__}") from None
    _check_size(value)
    return value


class _Machine:
    """The stack, the marks on it, and the memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME", "STOP"):
            pass
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        else:
            self._build(name)

    def _build(self, name: str) -> None:
        stack = self._stack
        match name:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(self._pop(self._marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(len(stack) - _TUPLE_SIZES[name])))
            case "APPEND" | "APPENDS":
                values = self._pop(len(stack) - 1 if name == "APPEND" else self._marks.pop())
                _top(stack, list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._pop(len(stack) - 2 if name == "SETITEM" else self._marks.pop())
                keys = values[::2]
                if not all(isinstance(key, str) for key in keys):  # integers can be made to collide
                    raise TypeError("a key is no string")
                _top(stack, dict).update(zip(keys, values[1::2], strict=True))
            case _:
                raise _invalid(
                    f"the pickle has the instruction {name}; only dicts, lists, tuples, strings, "
                    "bytes and plain numbers are read (make lists of arrays before sending them)"
                )

    def _pop(self, start: int) -> list[Any]:
        if start < 0:
            raise IndexError("the stack is empty")
        values = self._stack[start:]
        del self._stack[start:]
        return values


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise TypeError("the value is of another kind")
    return stack[-1]


def _check_size(value: Any) -> None:
    """A few instructions can make a list of a list of a list ... of the same list, or a list that
    holds itself."""
    left = [value]
    seen = 1
    while left:
        node = left.pop()
        if not isinstance(node, (dict, list, tuple)):
            continue
        inner = [*node, *node.values()] if isinstance(node, dict) else node
        seen += len(inner)
        if seen > MAX_STEPS:
            raise _invalid(f"the pickle holds more than {MAX_STEPS} values, or itself")
        left += inner


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
