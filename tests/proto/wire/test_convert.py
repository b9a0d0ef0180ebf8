import json
import math

import pytest

from reward_api.errors import InvalidRequest, Reason
from reward_api.wire import convert
from reward_api.wire.messages import (
    Image,
    Item,
    ItemError,
    ItemResult,
    ItemScore,
    ScoreRequest,
    ScoreResponse,
)
from reward_api.wire.v1 import reward_pb2 as pb


def through_proto(details: dict) -> dict:
    response = ScoreResponse(results=[ItemResult(score=ItemScore(value=0, details=details))])
    score = convert.response_from_proto(convert.response_to_proto(response)).results[0].score
    assert score is not None
    assert score.details is not None
    return score.details


def error_of(response: ScoreResponse) -> ItemError:
    error = response.results[0].error
    assert error is not None
    return error


def image_of(message: pb.ScoreRequest) -> Image:
    image = convert.request_from_proto(message).items[0].image
    assert image is not None
    return image


def test_integers_stay_integers_up_to_2_53():
    sent = {"count": 3, "half": 0.5, "big": 2**53, "beyond": 2**53 + 1, "huge": 10**400}
    got = through_proto(sent)
    assert got == {**sent, "beyond": str(2**53 + 1), "huge": str(10**400)}
    assert type(got["count"]) is int
    assert type(got["half"]) is float


def test_non_finite_details_become_null_as_in_json():
    details = {"nan": math.nan, "inf": [math.inf, -math.inf]}
    assert through_proto(details) == {"nan": None, "inf": [None, None]}
    text = ItemScore(value=0, details=details).model_dump_json()
    assert ItemScore.model_validate_json(text).details == through_proto(details)


def test_tuples_are_lists_and_other_types_are_refused():
    assert through_proto({"box": (1, 2)}) == {"box": [1, 2]}
    with pytest.raises(TypeError, match="set is not a JSON value"):
        through_proto({"a": {1}})


def test_unknown_reasons_of_newer_services_become_internal():
    message = pb.ScoreResponse(results=[pb.ItemResult(error=pb.ItemError(message="new"))])
    message.results[0].error.reason = 999  # pyright: ignore[reportAttributeAccessIssue]
    error = error_of(convert.response_from_proto(message))
    assert (error.reason, error.message) == (Reason.INTERNAL, "new")
    newer = {"reason": "NEW", "code": 3, "message": "new", "retryable": False, "hint": 1}
    text = json.dumps({"results": [{"error": newer}]})
    assert error_of(ScoreResponse.model_validate_json(text)).reason is Reason.INTERNAL


def test_a_raw_image_without_a_height_is_refused():
    message = pb.ScoreRequest(
        items=[pb.Item(image=pb.Image(raw=pb.RawImage(data=b"abc", width=1)))]
    )
    with pytest.raises(InvalidRequest, match=r"height"):
        convert.request_from_proto(message)


def test_absent_channels_mean_rgb():
    raw = pb.RawImage(data=b"abc", height=1, width=1)
    message = pb.ScoreRequest(items=[pb.Item(image=pb.Image(raw=raw))])
    assert image_of(message).channels == 3


def test_reasons_of_both_contracts_agree():
    assert set(pb.Reason.keys()) == {*map(str, Reason), "REASON_UNSPECIFIED"}


def test_prompts_may_hold_any_text():
    prompt = "naïve 🎨 \x00 مرحبا"
    request = ScoreRequest(items=[Item(prompt=prompt)])
    assert convert.request_from_proto(convert.request_to_proto(request)).items[0].prompt == prompt
