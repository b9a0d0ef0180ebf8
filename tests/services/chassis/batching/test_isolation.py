"""One batch through a scorer: every sample gets its own outcome, whatever the scorer does."""

import gc
import weakref

import numpy as np
import pytest
import torch
from fake_scorer import FakeScorer, FakeSettings
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore
from reward_services.chassis.batching import isolation
from reward_services.chassis.batching.isolation import (
    DeviceLost,
    check_device,
    is_device_lost,
    is_out_of_memory,
    score_isolated,
)
from reward_services.chassis.scorer import Sample


def _samples(*prompts, include_details=False):
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(0, 256, (4, 4, 3), np.uint8), prompt, {}, include_details)
        for prompt in prompts
    ]


def _run(*prompts, include_details=False):
    scorer = FakeScorer(FakeSettings())
    too_large = []
    samples = _samples(*prompts, include_details=include_details)
    return score_isolated(scorer.score, samples, too_large.append), scorer, too_large


def _reasons(outcomes):
    return [o.reason if isinstance(o, ItemFailure) else None for o in outcomes]


def test_an_exception_costs_only_the_guilty_sample():
    prompts = ["fine"] * 20 + ["boom"] + ["fine"] * 11
    outcomes, _, _ = _run(*prompts)
    clean, _, _ = _run(*["fine"] * 32)
    assert _reasons(outcomes) == [None] * 20 + [Reason.MODEL_ERROR] + [None] * 11
    neighbours = [i for i in range(32) if i != 20]
    assert [outcomes[i] for i in neighbours] == [clean[i] for i in neighbours]
    assert isinstance(outcomes[20], ItemFailure)
    assert outcomes[20].message == ("the model failed: RuntimeError: the model does not like this")


def test_a_wrong_number_of_outcomes_never_shifts_scores_onto_neighbours():
    outcomes, _, _ = _run("a", "short", "bb", "ccc")
    clean, _, _ = _run("a", "short2", "bb", "ccc")
    assert _reasons(outcomes) == [None, Reason.MODEL_ERROR, None, None]
    assert [outcomes[i] for i in (0, 2, 3)] == [clean[i] for i in (0, 2, 3)]


def test_non_finite_scores_are_errors():
    outcomes, scorer, _ = _run("a", "nan", "b")
    assert _reasons(outcomes) == [None, Reason.NON_FINITE_SCORE, None]
    assert len(scorer.batches) == 1


@pytest.mark.parametrize(
    "score",
    [ItemScore(value=1.0, scores={"part": float("inf")}), 1.0, None],
)
def test_what_is_no_finite_item_score_is_an_error(score):
    (outcome,) = score_isolated(lambda batch: [score], _samples("a"), lambda size: None)
    assert isinstance(outcome, ItemFailure)


def test_details_that_are_not_json_are_that_items_error_only_when_asked_for():
    outcomes, _, _ = _run("bad details", "b", include_details=True)
    assert _reasons(outcomes) == [Reason.MODEL_ERROR, None]
    outcomes, _, _ = _run("bad details", "b")
    assert _reasons(outcomes) == [None, None]


def test_details_that_no_protocol_carries_are_that_items_error():
    scores = [ItemScore(value=1.0, details={"answer": text}) for text in ("\ud800", "naïve 🎨")]
    samples = _samples("a", "b", include_details=True)
    outcomes = score_isolated(lambda batch: scores, samples, lambda size: None)
    assert _reasons(outcomes) == [Reason.MODEL_ERROR, None]


def test_out_of_memory_halves_until_it_fits():
    outcomes, scorer, too_large = _run(*["oom>2"] * 8)
    assert _reasons(outcomes) == [None] * 8
    assert too_large == [8, 4, 4]
    assert [len(batch) for batch in scorer.batches] == [8, 4, 2, 2, 4, 2, 2]


def test_out_of_memory_with_one_item_is_its_error():
    outcomes, _, _ = _run("fine", "oom>0", "fine")
    assert _reasons(outcomes) == [None, Reason.OUT_OF_MEMORY, None]
    assert isinstance(outcomes[1], ItemFailure)
    assert outcomes[1].retryable


def test_the_failed_batch_is_freed_before_the_retry():
    activations = weakref.WeakSet()

    class Activation:
        pass

    def score(batch):
        assert not activations
        mine = Activation()
        activations.add(mine)
        if len(batch) > 1:
            raise MemoryError
        return [ItemScore(value=1.0) for _ in batch]

    assert len(score_isolated(score, _samples("a", "b", "c"), lambda size: None)) == 3


def test_the_failed_batch_is_gone_when_memory_is_given_back(monkeypatch):
    alive, seen = weakref.WeakSet(), []

    class Activation:
        pass

    def score(batch):
        mine = Activation()
        alive.add(mine)
        if len(batch) > 1:
            raise MemoryError
        return [ItemScore(value=1.0) for _ in batch]

    monkeypatch.setattr(isolation, "_release_memory", lambda: seen.append(len(alive)))
    score_isolated(score, _samples("a", "b"), lambda size: None)
    assert seen == [0]


def test_a_device_that_computes_no_more_is_found_whatever_the_error_says():
    def lost():
        raise DeviceLost("the probe failed")

    scorer = FakeScorer(FakeSettings())
    with pytest.raises(DeviceLost, match="the probe failed"):
        score_isolated(scorer.score, _samples("a", "boom"), lambda size: None, lost)
    with pytest.raises(DeviceLost, match="the probe failed"):
        score_isolated(scorer.score, _samples("oom>0"), lambda size: None, lost)


def test_the_device_is_not_asked_for_a_failure_of_the_items_own():
    asked = []

    def score(batch):
        raise ItemFailure(Reason.MISSING_METADATA, "no such class")

    outcomes = score_isolated(score, _samples("a"), lambda n: None, lambda: asked.append(1))
    assert _reasons(outcomes) == [Reason.MISSING_METADATA]
    assert not asked


def test_the_probe_asks_torchs_device():
    check_device("cpu")
    if not torch.cuda.is_available():  # then asking for a GPU fails as a lost one does
        with pytest.raises(DeviceLost):
            check_device("cuda")


def test_a_lost_device_is_not_bisected():
    scorer = FakeScorer(FakeSettings())
    with pytest.raises(DeviceLost, match="device-side assert"):
        score_isolated(scorer.score, _samples("a", "lost"), lambda size: None)
    assert len(scorer.batches) == 1


@pytest.mark.parametrize(
    ("error", "lost", "memory"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True, False),
        (RuntimeError("CUDA error: unspecified launch failure"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"), False, True),
        (MemoryError(), False, True),
        (ValueError("shape mismatch"), False, False),
    ],
)
def test_errors_are_told_apart(error, lost, memory):
    assert is_device_lost(error) is lost
    assert is_out_of_memory(error) is memory


@pytest.fixture(scope="module")
def small_heap():
    """Freeing memory walks all objects; other tests may have left this process millions."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("small_heap")
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "bb", "boom", "nan", "short", "failure", "oom>0", "oom>1", "oom>3"]),
        min_size=1,
        max_size=24,
    )
)
def test_every_sample_gets_exactly_its_own_outcome(prompts):
    expected = {
        "boom": Reason.MODEL_ERROR,
        "short": Reason.MODEL_ERROR,
        "nan": Reason.NON_FINITE_SCORE,
        "failure": Reason.JUDGE_PARSE,
        "oom>0": Reason.OUT_OF_MEMORY,
    }
    outcomes, _, _ = _run(*prompts)
    assert _reasons(outcomes) == [expected.get(prompt) for prompt in prompts]
    for sample, outcome in zip(_samples(*prompts), outcomes, strict=True):
        if isinstance(outcome, ItemScore):
            assert outcome.value == np.mean(sample.image) + len(sample.prompt) / 1000
