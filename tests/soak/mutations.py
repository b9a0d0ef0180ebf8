"""Valid bodies, made hostile: cut, flipped, doubled, filled with odd values. The same seed gives the same
inputs, so that what goes wrong can be looked at again."""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import struct
import threading
import zlib
from typing import Any

import numpy as np
from PIL import Image

ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 1e308, -0.0, 2**31, 2**63, 2**64, 10**40),
    *("", "\0", "\ud800", "é" * 300, "🦄", "../../etc/passwd", "a" * 20_000, "NaN"),
    *([], {}, [[]], {"": None}, [None] * 50, {"a": {"b": {"c": []}}}),
]
ODD_BYTES = [
    b"\0",
    b"\xff" * 9,
    b"\x80" * 10,
    b"\r\n\r\n",
    b"\x00\x00\x00\x00",
    b"{" * 100,
    b"[" * 400,
]


def deep(kind: str, depth: int) -> bytes:
    return (
        (b"[" * depth + b"]" * depth) if kind == "list" else b'{"a":' * depth + b"1" + b"}" * depth
    )


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few changes of any kind."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 2, 4, 16, 200)))
        match rng.randrange(7):
            case 0:
                del changed[at:]
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 2:
                changed[at:at] = rng.choice(ODD_BYTES)
            case 3:
                changed[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
            case 4:
                changed[at:at] = changed[at:end]
            case 5:
                del changed[at:end]
            case _:
                changed += changed[: rng.choice((1, 10, len(changed)))]
    return bytes(changed)


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one place changed: another value, gone, doubled, renamed."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = (
            node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        )
        for key in list(keys):
            places.append((node, key))
            walk(node[key])

    walk(value)
    for _ in range(rng.choice((1, 1, 2))):
        if not places:
            return rng.choice(ODD_VALUES)
        node, key = rng.choice(places)
        try:
            match rng.randrange(5):
                case 0 if isinstance(node, dict):
                    node[f"{key}x"] = node.pop(key)
                case 1:
                    del node[key]
                case 2 if isinstance(node, list):
                    node.extend(copy.deepcopy(node[key]) for _ in range(rng.choice((1, 3, 300))))
                case _:
                    node[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        except (KeyError, IndexError):
            continue  # its place went with an earlier change
    return value


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """Of a changed value, mostly; else changed bytes, or nesting that no parser likes."""
    kind = rng.random()
    if kind < 0.6:
        text = json.dumps(mutate_value(rng, value), ensure_ascii=rng.random() < 0.7)
        return text.encode("utf-8", "surrogatepass")
    if kind < 0.95:
        return mutate_bytes(rng, json.dumps(value).encode())
    if kind < 0.98:
        return deep(rng.choice(("list", "dict")), rng.choice((50, 500, 20_000)))
    return json.dumps(value).replace("1", "1" * rng.choice((5, 400, 5000)), 1).encode()


def picture(rng: random.Random, side: int = 24) -> np.ndarray:
    return np.frombuffer(rng.randbytes(side * side * 3), np.uint8).reshape(side, side, 3)


def image_file(rng: random.Random) -> bytes:
    """A whole file in some format and mode."""
    mode = rng.choice(("RGB", "RGB", "L", "RGBA", "P", "LA", "1", "CMYK", "I;16"))
    form = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP"))
    image = Image.fromarray(picture(rng, rng.choice((1, 8, 24, 64))))
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, form)
    except (OSError, ValueError):
        image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(
    width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b""
) -> bytes:
    """A PNG file of zeros: a few kB that decode to width x height pixels."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = bytes(1 + (min(width, 70_000) * channels * depth + 7) // 8)
    packer = zlib.compressobj(1)
    rows = min(height, 10 if width > 9000 else 5000)
    packed = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + extra
        + png_chunk(b"IDAT", packed)
        + png_chunk(b"IEND", b"")
    )


def bombs() -> list[bytes]:
    """Small files that are large pictures, or promise to be."""
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000), 1))
    return [
        png_of(4000, 4000),  # within the limits: 48 MB of pixels from 47 kB
        png_of(4096, 4096, colour=6),
        png_of(4096, 4096, depth=16, colour=0),
        png_of(2000, 2000, depth=16, colour=6),
        png_of(9000, 9000),
        png_of(8192, 8192),
        png_of(60_000, 1),
        png_of(2**31 - 1, 2**31 - 1),
        png_of(64, 64, extra=text),
        png_of(64, 64, extra=png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(9_000_000), 1))),
        png_of(16, 16, extra=png_chunk(b"tEXt", b"a\0b") * 70_000),
    ]


_MAKING = threading.Lock()
_bombs = functools.cache(bombs)


def hostile_image(rng: random.Random) -> bytes:
    with _MAKING:
        large = _bombs()
    kind = rng.random()
    if kind < 0.04:
        return rng.choice(large)
    if kind < 0.06:
        return mutate_bytes(rng, rng.choice(large[:4]))
    if kind < 0.15:
        return rng.choice((b"", b"<svg/>", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"))
    if kind < 0.25:
        return image_file(rng)
    return mutate_bytes(rng, image_file(rng))
