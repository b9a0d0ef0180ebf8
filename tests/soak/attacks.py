"""The hostile inputs by kind: what each sends, and how the answer is called."""

from __future__ import annotations

import base64
import json
import pickle
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attacks_grpc import grpc_oip, grpc_own
from mutations import deep, hostile_image, image_file, json_bytes, mutate_bytes, picture
from target import BINARY, DEADLINE, JSON, LENGTH, TIMEOUT_S, Target

Shoot = Callable[[random.Random, Target], str]


def _item(rng: random.Random) -> dict[str, Any]:
    data = base64.b64encode(hostile_image(rng) if rng.random() < 0.2 else image_file(rng)).decode()
    return {
        "id": "a",
        "prompt": "a sign",
        "image": {"data": data},
        "metadata": {"n": [1, {"a": 2}]},
    }


def json_form(rng: random.Random, target: Target) -> str:
    path = "/v1/score" if rng.random() < 0.9 else "/v1/score_gradient"
    if rng.random() < 0.004:  # megabytes that are no request
        count = rng.choice((200_000, 1_000_000))
        text = rng.choice(
            (b'{"items":[' + b"{}," * count + b"{}]}", b'{"items":' + deep("list", count) + b"}")
        )
        return target.ask("POST", path, text, JSON | DEADLINE)
    message = {
        "model": "jpeg",
        "request_id": "r",
        "items": [_item(rng) for _ in range(2)],
        "priority": 2,
    }
    return target.ask("POST", path, json_bytes(rng, message), JSON | DEADLINE)


def binary_form(rng: random.Random, target: Target) -> str:
    files = [image_file(rng) for _ in range(2)]
    items: list[dict[str, Any]] = [
        {"prompt": "a", "image": {"binary_data_size": len(file)}} for file in files
    ]
    message: dict[str, Any] = {"items": items}
    pixels = b"".join(files)
    if rng.random() < 0.3:
        raw = picture(rng).tobytes()
        packed = {"count": 2, "height": 24, "width": 24, "binary_data_size": 2 * len(raw)}
        message, pixels = {"items": [{}, {}], "packed_images": packed}, raw * 2
    head = json_bytes(rng, message) if rng.random() < 0.5 else json.dumps(message).encode()
    length = str(len(head))
    if rng.random() < 0.3:
        length = rng.choice(
            ("0", "-1", "1", "x", "", "9" * 30, str(len(head) + rng.randrange(-9, 9)))
        )
    body = head + (mutate_bytes(rng, pixels) if rng.random() < 0.5 else pixels)
    return target.ask(
        "POST", "/v1/score", body, {"content-type": BINARY, LENGTH: length} | DEADLINE
    )


IMAGES_PER_CALL = 8


def images(rng: random.Random, target: Target) -> str:
    files = [hostile_image(rng) for _ in range(IMAGES_PER_CALL)]
    items = [{"prompt": "a", "image": {"binary_data_size": len(file)}} for file in files]
    head = json.dumps({"items": items}).encode()
    headers = {"content-type": BINARY, LENGTH: str(len(head))} | DEADLINE
    return target.ask("POST", "/v1/score", head + b"".join(files), headers)


def dialects(rng: random.Random, target: Target) -> str:
    text = base64.b64encode(hostile_image(rng) if rng.random() < 0.3 else image_file(rng)).decode()
    turn = {"text": "a", "image_b64": text}
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "data": [text]}
    bodies: list[tuple[str, Any]] = [
        ("/compute", {"prompt": ["a"], "image": [text], "kwargs": {"metadata": [{}]}}),
        ("/score", {"requests": [{"history": [turn], "required_rewards": ["jpeg"]}]}),
        ("/get_reward", {"query": [text], "prompts": ["a"], "labels": ['{"a": 1}']}),
        ("/get_reward", {"prompt": "a", "response": text, "label": "x"}),
        ("/v2/models/jpeg/infer", {"id": "i", "inputs": [tensor], "outputs": [{"name": "SCORE"}]}),
    ]
    path, body = rng.choice(bodies)
    if rng.random() < 0.05:
        name = rng.choice(("jpeg", "x", "%00", "..", "jpeg/versions/9"))
        return target.ask(
            "GET", f"/v2/models/{name}/{rng.choice(('ready', 'config', 'stats', 'x'))}"
        )
    data = json_bytes(rng, body)
    headers = JSON | DEADLINE
    if path.endswith("infer") and rng.random() < 0.4:
        shape = [rng.choice((1, 2, 2**40)), 24, 24, 3]
        parameters = {"binary_data_size": rng.choice((24 * 24 * 3, 0, 2**40, -1))}
        tensor = {"name": "IMAGE", "shape": shape, "datatype": "UINT8", "parameters": parameters}
        head = json.dumps({"inputs": [tensor]}).encode()
        data = mutate_bytes(rng, head + picture(rng).tobytes())
        headers = headers | {"content-type": BINARY, LENGTH: str(len(head))}
    return target.ask("POST", path, data, headers)


class _Exploit:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self._marker,)


def _pickle_bodies(rng: random.Random, target: Target) -> bytes:
    fields = {"images": [image_file(rng)], "prompts": ["a"], "metadata": {"n": 1}}
    match rng.randrange(8):
        case 0:
            return pickle.dumps(_Exploit(target.marker), rng.choice((0, 2, 4)))
        case 1:
            return pickle.dumps(fields | {"metadata": _Exploit(target.marker)}, 4)
        case 2:
            return b"\x80\x04" + b"N" * rng.choice((100, 60_000, 400_000)) + b"."
        case 3:
            return b"\x80\x04" + b"]\x94" * rng.choice((9, 20_000)) + b"a" * 9 + b"."
        case 4:
            size = struct.pack("<Q", rng.choice((2**31, 2**62, 2**64 - 1)))
            return b"\x80\x04" + rng.choice((b"\x8e", b"\x8d", b"\x95")) + size + b"x."
        case 5:
            return pickle.dumps(fields | {"prompts": np.zeros(3)}, 4)
        case _:
            return mutate_bytes(rng, pickle.dumps(fields, rng.choice((2, 4, 5))))


def pickles(rng: random.Random, target: Target) -> str:
    return target.ask("POST", "/", _pickle_bodies(rng, target), DEADLINE)


_ODD_HEADERS = (
    "",
    "0",
    "-1",
    "1e9",
    "9" * 40,
    "a" * 7000,
    "\xff",
    "a;b=c",
    "identity",
    "gzip",
    "*/*",
)
_NAMES = (
    *("content-type", "content-encoding", LENGTH, "x-reward-timeout-ms", "x-reward-priority"),
    *("x-request-id", "idempotency-key", "authorization", "accept", "expect", "transfer-encoding"),
    *("connection", "host", "range", "te", "upgrade", "cookie", "x-forwarded-for"),
)
_PATHS = (
    "/v1/score",
    "/v1/metadata",
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
)
_METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW")


def headers(rng: random.Random, target: Target) -> str:
    item = {"prompt": "a", "image": {"data": base64.b64encode(image_file(rng)).decode()}}
    body = json.dumps({"items": [item]}).encode()
    given = JSON | {
        rng.choice(_NAMES): rng.choice(_ODD_HEADERS) for _ in range(rng.choice((1, 2, 9)))
    }
    path = rng.choice(_PATHS) + rng.choice(("", "", "?a=b", "/", "/../..", "%2e%2e%2f", "//x"))
    return target.ask(rng.choice(_METHODS), path, body, given)


_RAW = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST /v1/score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n{",
    b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 3000,
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(40),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60),
)


def raw_bytes(rng: random.Random, target: Target) -> str:
    url = target.http if rng.random() < 0.8 else target.grpc
    host, _, port = url.partition("://")[2].partition(":")
    data = rng.choice(_RAW) if rng.random() < 0.3 else mutate_bytes(rng, rng.choice(_RAW))
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as sock:
        if rng.random() < 0.3:  # a reset in place of an end
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            sock.sendall(data)
            if rng.random() < 0.5:
                return "left"
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(0.5)
            answer = sock.recv(4096)
        except OSError:
            return "closed"
    words = answer.split(b" ", 2)
    if answer.startswith(b"HTTP/1.1 ") and len(words) > 1:
        return words[1].decode("ascii", "replace")
    return "closed"


def gateway(rng: random.Random, target: Target) -> str:
    text = base64.b64encode(image_file(rng)).decode()
    turn = {"history": [{"text": "a", "image_b64": text}], "required_rewards": ["jpeg"]}
    kind = rng.randrange(4)
    if kind == 0:
        return target.ask(
            "POST", "/score", json_bytes(rng, {"requests": [turn]}), JSON, url=target.gateway
        )
    if kind == 1:
        message = {"items": [{"prompt": "a", "image": {"data": text}}], "rewards": ["jpeg"]}
        return target.ask("POST", "/v1/score", json_bytes(rng, message), JSON, url=target.gateway)
    if kind == 2:
        body = json_bytes(rng, {"uuid": "00000000-0000-0000-0000-000000000000", "type": "jpeg"})
        return target.ask("POST", "/api/reward/pull", body, JSON, url=target.gateway)
    header = json.dumps({"prompts": ["a"], "reward_fn": {"jpeg": 1.0}}).encode()
    data = mutate_bytes(rng, header + b"\n" + picture(rng).tobytes())
    return target.ask("POST", "/api/reward/enqueue", data, JSON, url=target.gateway)


_OPEN = ("/livez", "/readyz")


def wrong_tokens(rng: random.Random, target: Target) -> str:
    """Anything but 401 for a route that is not open would be a way past the token."""
    path = rng.choice(
        (*_PATHS[:3], "/metrics", "/docs", "/score", "/compute", "/v2", "/livez/../metrics")
    )
    path += rng.choice(("", "", "?token=x", "/", ";a", "%00"))
    words = (
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "bearer x",
        "Basic",
        "Basic OnNlY3JldA==",
        "\xff",
    )
    given = {"authorization": rng.choice(words)} if rng.random() < 0.9 else {}
    method = rng.choice(_METHODS)
    status = target.ask(method, path, b"{}", JSON | given, url=target.guarded)
    is_page = path.split("?")[0] == "/" and method in ("GET", "HEAD")
    if status in ("401", "400", "closed") or is_page:
        return status
    return f"got past: {method} {path} {status}"


KINDS: dict[str, tuple[float, Shoot]] = {
    "JSON form": (0.18, json_form),
    "binary form": (0.14, binary_form),
    "images": (0.14, images),
    "dialects": (0.14, dialects),
    "pickles": (0.10, pickles),
    "headers": (0.08, headers),
    "raw bytes": (0.04, raw_bytes),
    "gRPC": (0.08, grpc_own),
    "Open Inference, gRPC": (0.05, grpc_oip),
    "gateway": (0.03, gateway),
    "wrong tokens": (0.02, wrong_tokens),
}
"""Share of all inputs, and what sends one (of `images` IMAGES_PER_CALL)."""

WRONG = ("500", "501", "502", "no answer", "UNKNOWN", "INTERNAL", "DATA_LOSS")
"""No input may be answered like this."""

MAY_CLOSE = ("headers", "raw bytes", "wrong tokens")
"""Where HTTP itself is hostile, a closed connection is an answer."""
