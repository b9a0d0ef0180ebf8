"""What a reward author writes: `load` once, `score` a batch. HTTP and gRPC stay out of sight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from reward_api.errors import ItemFailure
from reward_api.wire.messages import ItemScore, ScoreRange


class ScorerSettings(BaseModel):
    """A reward's own settings: field `score` of reward `ocr` is the environment variable
    REWARD_OCR_SCORE, the flag --score and the key `score` in the metadata. The text under a field is
    its documentation, also in --help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    service_defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the service whose default is another for this reward, by name."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded, validated item."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB, C-contiguous; read-only."""
    prompt: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    include_details: bool = False
    wants_gradient: bool = False
    prepared: Any = None
    """What `Scorer.prepare` returned for this item."""


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """What GetMetadata tells of a reward; valid after `load`."""

    description: str
    score: ScoreRange
    sub_scores: Sequence[ScoreRange] = ()
    prompt_required: bool = False
    metadata_schema: str = ""
    license: str = ""
    revision: str = ""
    """Digest of weights and settings: equal revisions give equal scores."""


class Scorer(ABC):
    """One reward model. The chassis calls `load` and `score` from one thread of its own (or, with
    `parallel_batches`, several), and `prepare` from a pool of threads, before the item joins a batch."""

    Settings: ClassVar[type[ScorerSettings]] = ScorerSettings
    auto_device: ClassVar[str] = "auto"
    """What `--device auto` means here: "cpu" for a reward that has no use for a GPU."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def parallel_batches(self) -> int:
        """How many batches are scored at the same time, each on a thread of its own. More than 1 is for
        a scorer that waits for an engine elsewhere, so that none waits for another batch's slowest
        item. Known before `load`."""
        return 1

    @abstractmethod
    def load(self, device: str) -> None:
        """Loads weights onto `device` ("cpu", "cuda", "cuda:1"). Raises on failure."""

    @abstractmethod
    def info(self) -> ScorerInfo:
        """Ranges, licence and revision; called after `load`."""

    @abstractmethod
    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        """One outcome per sample, in order. An ItemFailure is that item's error; an exception makes
        the chassis halve the batch until the guilty sample stands alone."""

    def score_gradient(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        """`score`, with every ItemScore's `gradient` (`wire.gradients.pack_gradient`), for rewards that
        are differentiable; only these override it. A batch holds either calls or the others'."""
        raise NotImplementedError

    @property
    def has_gradient(self) -> bool:
        return type(self).score_gradient is not Scorer.score_gradient

    def prepare(self, sample: Sample) -> Any:
        """CPU work per item (parse the prompt, resize the image), run before batching; the result
        becomes `sample.prepared`. Raises ItemFailure for an item that cannot be scored."""
        return None

    def batch_key(self, sample: Sample) -> Hashable:
        """Samples share a batch only if their keys are equal. A model that needs equal shapes
        returns `sample.image.shape`. Cheap: it runs on the event loop."""
        return None

    def is_available(self) -> bool:
        """Whether what the scorer needs elsewhere, an engine of its own, answers. Asked every few
        seconds on a thread; while it is False the service is not ready and refuses calls. Only for
        scorers that override it."""
        return True

    def warmup_samples(self) -> Sequence[Sample]:
        """Samples scored once before the service says it is ready."""
        grey = np.full((512, 512, 3), 127, np.uint8)
        return [Sample(image=grey, prompt='a sign that says "warm up"')]
