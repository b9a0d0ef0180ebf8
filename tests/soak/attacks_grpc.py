"""Hostile messages for the gRPC port: our own service, the library's, and Open Inference."""

from __future__ import annotations

import random
from typing import Any

from mutations import hostile_image, mutate_bytes, picture
from target import Target, called

from reward_api.wire.v1 import open_inference_pb2, reward_pb2


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def _empty_messages(rng: random.Random, number: int) -> bytes:
    """A message whose field `number` comes very often, empty: two bytes each."""
    return bytes([number << 3 | 2, 0]) * rng.choice((20_000, 2_000_000))


def grpc_own(rng: random.Random, target: Target) -> str:
    if rng.random() < 0.01:
        many = _empty_messages(rng, rng.choice((1, 3, 4)))
        if rng.random() < 0.5:  # within an item, or its metadata
            many = _field(3, many if rng.random() < 0.5 else _field(4, _field(1, many)))
        call = target.channel().unary_unary("/reward.v1.RewardService/Score")
        return called(lambda: call(many, timeout=20))
    message = reward_pb2.ScoreRequest(model="jpeg")
    item = message.items.add(prompt="a")
    item.image.encoded = hostile_image(rng)
    data = message.SerializeToString()
    if rng.random() < 0.8:
        data = mutate_bytes(rng, data)
    channel = target.channel()
    method = rng.choice(("Score", "Score", "Score", "ScoreGradient", "GetMetadata", "Nothing"))
    if rng.random() < 0.75:
        call = channel.unary_unary(f"/reward.v1.RewardService/{method}")
        return called(lambda: call(data, timeout=20))
    garbage = mutate_bytes(rng, b"\x0a\x17reward.v1.RewardService")
    kind = rng.randrange(3)
    if kind == 0:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        return called(lambda: check(garbage, timeout=20))
    if kind == 1:
        name = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        ask = channel.stream_stream(name)
        return called(lambda: list(ask(iter([garbage]), timeout=20)))

    def watch() -> None:
        stream: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")(garbage, timeout=20)
        try:
            next(stream)
        finally:
            stream.cancel()

    return called(watch)


def grpc_oip(rng: random.Random, target: Target) -> str:
    message = open_inference_pb2.ModelInferRequest(model_name="jpeg")
    tensor = message.inputs.add(name="IMAGE", datatype="UINT8", shape=[1, 24, 24, 3])
    if rng.random() < 0.2:
        tensor.shape[0] = rng.choice((0, -1, 2**62))
    message.raw_input_contents.append(picture(rng).tobytes())
    data = mutate_bytes(rng, message.SerializeToString())
    if rng.random() < 0.01:
        data = _empty_messages(rng, rng.choice((4, 5, 6, 7)))
    methods = ("ModelInfer", "ModelInfer", "ModelReady", "ModelConfig", "RepositoryIndex", "X")
    call = target.channel().unary_unary(f"/inference.GRPCInferenceService/{rng.choice(methods)}")
    return called(lambda: call(data, timeout=20))
