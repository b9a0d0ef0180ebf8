"""The pickle protocol of flow_grpo's reward server, its relatives, and verl-omni's HTTP scorer:
POST /.

Bodies are read by plain_pickle.py, which can build plain values and execute nothing. README.md says
which status means what: flow_grpo's client sends a request that got a 500 a thousand times.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response

from reward_api.callers.geneval import SUB_SCORES, published_answer
from reward_api.errors import InvalidRequest, Reason, RewardError
from reward_api.wire.messages import Image, ItemScore, ScoreRequest
from reward_services.chassis.calls import Call
from reward_services.chassis.http.call import http_call
from reward_services.dialects.common import (
    dialect_router,
    error_headers,
    is_temporary,
    request_of,
    scores_of,
)
from reward_services.dialects.plain_pickle import read_plain_pickle

_KEYS = frozenset({"images", "prompts", "metadata", "meta_datas", "only_strict"})
# Protocol 4 is read by every Python since 3.4.
_PROTOCOL = 4
_RETRY_AFTER_S = 1.0
# A byte of a pickle may be an instruction, which takes as long as many bytes of JSON.
_COST = 16

Fields = dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    message: ScoreRequest
    answer: Callable[[list[ItemScore]], Fields]


def _errors(error: RewardError, call: Call | None) -> Response:
    """Never 500. What passes by itself has a Retry-After, which makes flow_grpo's client (urllib3)
    wait and come back; anything else it does not send again."""
    status, made = error.http_status, error_headers(error, call)
    if is_temporary(error):
        status = 429 if status == 429 else 503
        made.setdefault("Retry-After", f"{_RETRY_AFTER_S:.0f}")
    elif status == 500:
        status = 503
        made.pop("Retry-After", None)
    return _pickled({"error": str(error)}, status, made)


router = dialect_router(_errors)


@router.post("/")
async def score(request: Request) -> Response:
    async with http_call(request, "pickle") as call:
        body = await call.body()
        asked = await call.parse(partial(_read, body), _COST * len(body))
        fields = asked.answer(scores_of(await call.score(asked.message)))
    return _pickled(fields, 200, {})


def _pickled(fields: Fields, status: int, made: Mapping[str, str]) -> Response:
    body = pickle.dumps(fields, _PROTOCOL)
    return Response(body, status, dict(made), media_type="application/octet-stream")


def _read(body: memoryview) -> _Asked:
    fields = read_plain_pickle(body)
    if isinstance(fields, dict) and isinstance(fields.get("images"), dict):
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            f"images is a dict of {sorted(map(str, fields['images']))}: this reward reads one image "
            "per prompt, and no reference image",
        )
    if not isinstance(fields, dict) or not isinstance(fields.get("images"), (list, tuple)):
        raise _invalid("the pickle must be a dict with a list 'images'")
    unknown = fields.keys() - _KEYS
    if unknown:
        raise _invalid(f"unknown key {sorted(map(str, unknown))[0]!r}; known: {sorted(_KEYS)}")
    images = [_image(data, i) for i, data in enumerate(fields["images"])]
    if "meta_datas" in fields:
        return _read_geneval(images, fields["meta_datas"], bool(fields.get("only_strict")))
    metadata = fields.get("metadata") or None
    if isinstance(metadata, dict) and "meta_datas" in metadata:  # DeepGen-RL's form of GenEval
        return _read_geneval(
            images,
            metadata["meta_datas"],
            bool(metadata.get("only_strict")),
            prompts=fields.get("prompts"),
        )
    if "prompts" in fields:
        return _Asked(request_of(images, fields["prompts"], metadata), partial(_values, "scores"))
    return _Asked(request_of(images, [""] * len(images), metadata), partial(_values, "outputs"))


def _read_geneval(
    images: list[Image], metadata: Any, only_strict: bool, prompts: Any = None
) -> _Asked:
    needed = {"tag"} if prompts is not None else {"tag", "prompt"}
    if not isinstance(metadata, (list, tuple)):
        raise _invalid("meta_datas must be a list of dicts")
    for i, one in enumerate(metadata):
        if not isinstance(one, dict) or not needed <= one.keys():
            names = " and ".join(repr(name) for name in sorted(needed, reverse=True))
            raise InvalidRequest(
                Reason.MISSING_METADATA, f"meta_datas[{i}] must be a dict with {names}"
            )
    if prompts is None:
        prompts = [one["prompt"] for one in metadata]
    message = request_of(images, prompts, metadata)
    tags = [one["tag"] for one in metadata]
    return _Asked(message, partial(_geneval, tags, only_strict))


def _geneval(tags: list[str], only_strict: bool, scores: list[ItemScore]) -> Fields:
    if not all(score.scores.keys() >= SUB_SCORES for score in scores):
        raise _invalid(f"meta_datas is for GenEval: this reward lacks {sorted(SUB_SCORES)}")
    return published_answer(tags, [score.scores for score in scores], only_strict=only_strict)


def _values(key: str, scores: list[ItemScore]) -> Fields:
    return {key: [score.value for score in scores]}


def _image(data: Any, index: int) -> Image:
    if not isinstance(data, bytes):
        raise _invalid(f"images[{index}] is a {type(data).__name__}, not the bytes of a file")
    return Image(data=data)


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(Reason.INVALID_REQUEST, message)
