"""cosmos-rl's remote reward: POST /api/reward/enqueue, /pull and /ping.

An enqueued batch is scored at once; its answer waits here, in this process, to be pulled. A pull waits
some seconds for it, then says 425 "too early", which every version of the client repeats by itself. (The
service of cosmos-rl says 400, on which the client of 0.4.7 and later raises, and its trainer ends.) A
failed batch says 400 with the reason for good: a failure stays a failure, and no score ever comes.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from pydantic import Field

from reward_api.batch import ScoreBatch
from reward_api.callers.geneval import SUB_SCORES
from reward_api.errors import InvalidRequest, Overloaded, Reason, RewardError
from reward_services.dialects.common import Body, read_json
from reward_services.gateway.rewards import Asked, Rewards

MAX_TASKS = 256
KEEP_S = 900.0
WAIT_S = 5.0
"""How long a pull waits; the client gives up on it after 10 s."""
_MAX_HEADER_BYTES = 4 * 2**20
_MAX_FORM_BYTES = 4096

logger = logging.getLogger(__name__)

# The names of a reward's scores in the answer, where they are not the reward's own.
_KEYS = {"ocr": "ocr_reward"}
_GENEVAL_KEYS = {
    "gen_eval_score": "flow_grpo",
    "gen_eval_reward": "official",
    "gen_eval_strict": "strict",
}


class NotYet(InvalidRequest):
    """The batch is still being scored."""


class EnqueueHeader(Body):
    """The line of JSON before the pixels."""

    prompts: list[str]
    reward_fn: dict[str, float]
    media_type: str = "image"
    geneval_tags: list[str] | None = None
    geneval_includes: list[Any] | None = None
    geneval_only_strict: bool = False
    input_info: dict[str, Any] = Field(default_factory=dict)


@dataclass(eq=False)
class _Task:
    scores: dict[str, asyncio.Task[ScoreBatch]]
    input_info: Mapping[str, Any]
    started: float = field(default_factory=time.monotonic)
    finished: dict[str, float] = field(default_factory=dict)
    pulled: set[str] = field(default_factory=set)

    @property
    def is_pulled(self) -> bool:
        """Its caller has everything; it stays only for a pull that is sent again."""
        return self.pulled == self.scores.keys()


class CosmosQueue:
    """What was enqueued and may still be pulled; bounded in number and time."""

    def __init__(
        self, rewards: Rewards, *, max_tasks: int = MAX_TASKS, wait_s: float = WAIT_S
    ) -> None:
        self._rewards = rewards
        self._max_tasks = max_tasks
        self._wait_s = wait_s
        self._tasks: OrderedDict[str, _Task] = OrderedDict()

    def enqueue(self, header: EnqueueHeader, pixels: np.ndarray) -> str:
        """The id to pull with. Raises InvalidRequest, Overloaded."""
        if not header.reward_fn:
            raise _invalid("reward_fn names no reward")
        # Whatever the weight: the client weights by itself, and pulls those with 0 and below too.
        for name in header.reward_fn:
            self._rewards.check(name)
        asked = Asked(pixels, header.prompts, _metadata(header, len(pixels)))
        self._make_room()
        if len(self._tasks) >= self._max_tasks:
            raise Overloaded(
                Reason.QUEUE_FULL, f"{self._max_tasks} batches wait to be pulled", retry_after_s=5.0
            )
        task = _Task({}, {"batch_size": len(pixels), **header.input_info})
        for name in header.reward_fn:
            task.scores[name] = asyncio.create_task(self._score(name, asked, task))
        key = uuid.uuid4().hex
        self._tasks[key] = task
        return key

    def __len__(self) -> int:
        """Batches whose scores nobody has pulled yet."""
        return sum(not task.is_pulled for task in self._tasks.values())

    async def pull(self, form: memoryview) -> dict[str, Any]:
        """The scores of one reward. Raises NotYet while there are none, InvalidRequest for what was
        never enqueued, and for ever ItemsFailed when an item has failed."""
        if len(form) > _MAX_FORM_BYTES:
            raise _invalid(f"a form of {len(form)} bytes: send uuid and type")
        fields = parse_qs(bytes(form).decode("utf-8", "replace"))
        key, name = (fields.get(part, [""])[0] for part in ("uuid", "type"))
        task = self._tasks.get(key)
        if task is None:
            raise _invalid(f"there is no batch {key[:64]!r}: it was never enqueued, or is too old")
        scores = task.scores.get(name)
        if scores is None:
            raise _invalid(f"batch {key} was not enqueued for the reward {name[:64]!r}")
        await asyncio.wait([scores], timeout=self._wait_s)
        if not scores.done():
            raise NotYet(Reason.INVALID_REQUEST, "not ready: ask again")
        if scores.cancelled():
            raise _invalid(f"batch {key} has been forgotten: it is too old")
        batch = scores.result().settle("raise")
        task.pulled.add(name)
        return {
            "scores": _score_lists(name, batch),
            "type": name,
            "input_info": task.input_info,
            "duration": task.finished[name],
            "decoded_duration": 0.0,
        }

    def work(self, key: str) -> list[asyncio.Task[ScoreBatch]]:
        """What a batch just enqueued started: it holds the pixels until it has ended."""
        return list(self._tasks[key].scores.values())

    def close(self) -> None:
        for task in self._tasks.values():
            for scores in task.scores.values():
                scores.cancel()

    async def _score(self, name: str, asked: Asked, task: _Task) -> ScoreBatch:
        try:
            batch = (await self._rewards.score({name: asked}))[name]
        except RewardError as error:
            logger.warning("a batch for %s failed: %s", name, error)
            raise
        finally:
            task.finished[name] = time.monotonic() - task.started
        # Its client shows no reason, so that this line is where a person finds it.
        for index, failure in list(batch.errors.items())[:1]:
            logger.warning(
                "a batch for %s has %d of %d images without a score; image %d: %s",
                *(name, len(batch.errors), len(batch.valid), index, failure),
            )
        return batch

    def _make_room(self) -> None:
        """Forgets what is too old and, when full, the oldest that has been pulled."""
        limit = time.monotonic() - KEEP_S
        old = [key for key, task in self._tasks.items() if task.started < limit]
        pulled = [key for key, task in self._tasks.items() if task.is_pulled]
        spare = max(0, len(self._tasks) - self._max_tasks + 1)
        for key in {*old, *pulled[:spare]}:
            for scores in self._tasks.pop(key).scores.values():
                scores.cancel()


def split_body(body: memoryview) -> tuple[EnqueueHeader, np.ndarray]:
    """The header, and uint8 [B, H, W, 3]. Raises InvalidRequest."""
    end = bytes(body[:_MAX_HEADER_BYTES]).find(b"\n")
    if end < 0:
        raise _invalid("the body must be one line of JSON, a line break, and a .npy file")
    header = read_json(EnqueueHeader, body[:end])
    if header.media_type != "image":
        raise InvalidRequest(
            Reason.UNSUPPORTED, f"media_type is {header.media_type[:32]!r}; images are scored here"
        )
    pixels = _read_npy(body[end + 1 :])
    if len(header.prompts) != len(pixels):
        raise InvalidRequest(
            Reason.COUNT_MISMATCH, f"{len(header.prompts)} prompts for {len(pixels)} images"
        )
    return header, pixels


def _read_npy(data: memoryview) -> np.ndarray:
    """Without numpy.load, which takes memory as the header says; nothing is unpickled."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read(file)
    except (ValueError, KeyError, EOFError) as error:
        raise _invalid(f"not a .npy file: {' '.join(str(error).split())[:200]}") from None
    rest = data[file.tell() :]
    is_image = dtype == np.uint8 and not is_fortran and len(shape) == 4 and shape[-1] == 3
    if not is_image or min(shape) < 1 or math.prod(shape) != len(rest):
        raise InvalidRequest(
            Reason.IMAGE_SHAPE,
            f"the array is {dtype} {list(shape)} with {len(rest)} bytes; send uint8 [B, H, W, 3]",
        )
    return np.frombuffer(rest, np.uint8).reshape(shape)


def _metadata(header: EnqueueHeader, count: int) -> list[Mapping[str, Any] | None]:
    tags, includes = header.geneval_tags, header.geneval_includes
    if tags is None or includes is None:
        return [None] * count
    if not len(tags) == len(includes) == count:
        raise InvalidRequest(
            Reason.COUNT_MISMATCH,
            f"{len(tags)} geneval_tags and {len(includes)} geneval_includes for {count} images",
        )
    return [{"tag": tag, "include": include} for tag, include in zip(tags, includes, strict=True)]


def _score_lists(name: str, batch: ScoreBatch) -> dict[str, list[float]]:
    if batch.scores.keys() >= SUB_SCORES:
        return {key: batch.scores[own].tolist() for key, own in _GENEVAL_KEYS.items()}
    return {_KEYS.get(name, name): batch.values.tolist()}


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
