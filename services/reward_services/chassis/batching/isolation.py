"""Runs one batch through a scorer so that every sample gets exactly one outcome of its own: a bad
sample, a lying scorer or a full memory costs no neighbour its score."""

from __future__ import annotations

import gc
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore
from reward_services.chassis.scorer import Sample

Outcome = ItemScore | ItemFailure
ScoreBatch = Callable[[Sequence[Sample]], Sequence[Outcome]]

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "alloc_failed",
    "bad_alloc",
    # cuBLAS makes its handle and workspace at its first use, and says no more when memory is short.
    "cublas_status_not_initialized",
)

# After these the CUDA context is lost for the process: every later call fails too. torch's device is
# asked whether it still computes (`check_device`), so this list is for frameworks that cannot be.
_DEVICE_LOST = (
    "device-side assert",
    "unspecified launch failure",
    "illegal memory access",
    "illegal instruction was encountered",
    "misaligned address",
    "uncorrectable ecc error",
    "hardware stack error",
    "launch timed out",
    "gpu is lost",
    "device is lost",
    "has fallen off the bus",
)


class DeviceLost(Exception):
    """The device cannot compute any more; only a new process helps."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for MemoryError, torch.OutOfMemoryError, and by text for CUDA and ONNX Runtime."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(mark in text for mark in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """True for errors that stick to the CUDA context (or whose cause is one)."""
    if isinstance(error, DeviceLost):
        return True
    text = str(error).lower()
    if any(mark in text for mark in _DEVICE_LOST):
        return True
    return error.__cause__ is not None and is_device_lost(error.__cause__)


def check_device(device: str) -> None:
    """Raises DeviceLost when torch's CUDA `device` computes no more. A CUDA error that sticks to the
    context fails every later call too, whatever its text; on another device, or when torch was never
    loaded, there is nothing to ask."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return
    try:
        torch.zeros(1, device=device).item()  # waits for the device
    except Exception as error:
        if not is_out_of_memory(error):
            raise DeviceLost(summary(error)) from error


def score_isolated(
    score: ScoreBatch,
    samples: Sequence[Sample],
    on_out_of_memory: Callable[[int], None],
    probe: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """One outcome per sample, in order.

    An exception, or a wrong number of outcomes, halves the batch until the guilty sample stands
    alone and gets MODEL_ERROR (OUT_OF_MEMORY when memory was short). `on_out_of_memory` is told the
    size that did not fit. `probe` raises DeviceLost when the device is gone: it is asked before a
    sample is blamed. Raises DeviceLost.
    """
    outcomes, error = _try(score, samples)
    if outcomes is not None:
        return [_checked(o, s) for o, s in zip(outcomes, samples, strict=True)]
    assert error is not None
    is_short = is_out_of_memory(error)
    if not is_short and is_device_lost(error):
        raise DeviceLost(summary(error)) from error
    failure, reason = _failure_of(error), summary(error)
    del error  # its traceback keeps the failed batch's tensors alive
    if is_short:
        on_out_of_memory(len(samples))
        _release_memory()
    if len(samples) == 1:
        if failure.reason in (Reason.MODEL_ERROR, Reason.OUT_OF_MEMORY):
            probe()
        return [failure]
    logger.warning("a batch of %d failed (%s); halving it", len(samples), reason)
    middle = len(samples) // 2
    return [
        *score_isolated(score, samples[:middle], on_out_of_memory, probe),
        *score_isolated(score, samples[middle:], on_out_of_memory, probe),
    ]


def _try(
    score: ScoreBatch, samples: Sequence[Sample]
) -> tuple[Sequence[Outcome] | None, Exception | None]:
    try:
        outcomes = score(samples)
        if len(outcomes) != len(samples):
            raise ValueError(
                f"score() returned {len(outcomes)} outcomes for {len(samples)} samples"
            )
    except Exception as error:
        if len(samples) == 1 and not isinstance(error, ItemFailure):
            logger.exception("the model failed on one sample")
        # The retry must start after this frame is gone, or the failed batch stays in memory.
        return None, error
    return outcomes, None


def _checked(outcome: Outcome, sample: Sample) -> Outcome:
    if isinstance(outcome, ItemFailure):
        return outcome
    if not isinstance(outcome, ItemScore):
        kind = type(outcome).__name__
        return ItemFailure(
            Reason.MODEL_ERROR, f"score() returned {kind} where an ItemScore or ItemFailure belongs"
        )
    if not outcome.is_finite:
        return ItemFailure(Reason.NON_FINITE_SCORE, "the model's score is NaN or infinite")
    if sample.wants_gradient and not _fits(outcome, sample):
        return ItemFailure(
            Reason.MODEL_ERROR, "score_gradient() returned no gradient of the image's shape"
        )
    if outcome.details is not None and sample.include_details:
        return _with_json_details(outcome)
    return outcome


def _fits(outcome: ItemScore, sample: Sample) -> bool:
    gradient = outcome.gradient
    if gradient is None:
        return False
    shape = (gradient.height, gradient.width, gradient.channels)
    return shape == sample.image.shape and math.isfinite(gradient.scale)


def _with_json_details(outcome: ItemScore) -> Outcome:
    try:
        # Encoded, because a lone surrogate is a str that no protocol carries.
        json.dumps(outcome.details, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return ItemFailure(Reason.MODEL_ERROR, f"the details are not JSON: {error}")
    return outcome


def _failure_of(error: Exception) -> ItemFailure:
    if isinstance(error, ItemFailure):
        return error.with_traceback(None)
    if is_out_of_memory(error):
        return ItemFailure(
            Reason.OUT_OF_MEMORY, "not enough memory to score this item, even alone in a batch"
        )
    return ItemFailure(Reason.MODEL_ERROR, f"the model failed: {summary(error)}")


def summary(error: BaseException) -> str:
    """Type and first line: messages carry no traceback and no data."""
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}"[:200]


def _release_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
