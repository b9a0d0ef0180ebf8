"""Time for scores, and what is said of those that do not come."""

from __future__ import annotations

import numpy as np
import pytest

from flow_trainer.loop.epoch_log import missing_scores
from flow_trainer.loop.scoring import Scorer
from flow_trainer.parallel.world import ALONE
from flow_trainer.recipe import Reward, Scoring
from flow_trainer.record.scores import Scores
from reward_api import ScoreBatch
from reward_api.errors import ItemFailure, Reason


def test_the_time_for_a_score_grows_with_the_epoch_unless_the_recipe_says() -> None:
    assert Scoring().deadline_s() == Scoring().deadline_s(64) == 120
    assert Scoring().deadline_s(1152) == 576
    assert Scoring(timeout_s=7).deadline_s(1152) == 7


@pytest.mark.parametrize(("scoring", "attempt_s"), [({}, 576), ({"attempt_timeout_s": 30}, 30)])
def test_an_attempt_has_all_the_time_unless_the_recipe_says(
    scoring: dict[str, float], attempt_s: float
) -> None:
    rewards = {"jpeg": Reward(url="http://127.0.0.1:1")}
    scorer = Scorer(rewards, Scoring.model_validate(scoring), ALONE, images_per_epoch=1152)
    try:
        assert scorer.timeout_s == 576
        assert scorer._clients["jpeg"]._timeout_s == 576
        assert scorer._clients["jpeg"]._attempt_timeout_s == attempt_s
    finally:
        scorer.close()


def scores_of(count: int, failed: int, reason: Reason) -> Scores:
    values = np.full(count, 0.5)
    values[:failed] = np.nan
    valid = np.isfinite(values)
    errors = {index: ItemFailure(reason, "late") for index in range(failed)}
    return Scores(values, valid, {"ocr": ScoreBatch(values, valid, errors)})


def test_missing_scores_are_said_above_one_in_a_hundred() -> None:
    assert missing_scores(scores_of(200, 2, Reason.DEADLINE)) is None
    message = missing_scores(scores_of(200, 3, Reason.DEADLINE))
    assert message is not None
    assert message.startswith("3 of 200 samples have no score and are left out (ocr.DEADLINE 3)")
    assert "scoring.timeout_s" in message
    message = missing_scores(scores_of(200, 200, Reason.MODEL_ERROR))
    assert message is not None
    assert "ocr.MODEL_ERROR 200" in message
    assert "timeout_s" not in message
