"""A real Scorer whose prompts say how it behaves, and a server: `python fake_scorer.py`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.run import run


class FakeSettings(ScorerSettings):
    delay_ms: int = Field(default=0, description="time of one batch")
    stages: str = Field(
        default="",
        description="a folder: loading, warming up and scoring the prompt `hold` take until a file "
        "`loaded`, `warm`, `scored` is there",
    )
    load_error: str = Field(default="", description="fail to load with this message")
    needs_prompt: bool = Field(default=False, description="whether a prompt is required")
    api_key: str | None = Field(default=None, description="a setting without a value")


class FakeScorer(Scorer):
    """Score: mean pixel plus prompt length / 1000. Prompts with a meaning: `_misbehave`."""

    Settings = FakeSettings

    def __init__(self, settings: FakeSettings) -> None:
        super().__init__(settings)
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_busy = threading.Event()
        self.is_loaded = False

    def load(self, device: str) -> None:
        self._wait_for("loaded")
        if self.settings.load_error:
            raise FileNotFoundError(self.settings.load_error)
        self.is_loaded = True

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="mean pixel plus prompt length / 1000",
            score=ScoreRange(name="fake", minimum=0.0, maximum=300.0),
            sub_scores=(ScoreRange(name="mean"), ScoreRange(name="length")),
            prompt_required=self.settings.needs_prompt,
            license="none",
            revision="r1",
        )

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        prompts = [sample.prompt for sample in batch]
        self.batches.append(prompts)
        self.is_busy.set()
        assert self.gate.wait(30)
        time.sleep(self.settings.delay_ms / 1000)
        for prompt in prompts:
            self._misbehave(prompt, len(batch))
        outcomes = [self._outcome(sample) for sample in batch]
        return outcomes[1:] if "short" in prompts else outcomes

    def _wait_for(self, stage: str) -> None:
        while self.settings.stages and not Path(self.settings.stages, stage).exists():
            time.sleep(0.01)

    def _misbehave(self, prompt: str, size: int) -> None:
        if prompt == "hold":
            self._wait_for("scored")
        if prompt == "boom":
            raise RuntimeError("the model does not like this\nand says so at length")
        if prompt.startswith("oom>") and size > int(prompt[4:]):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if prompt == "lost":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if prompt == "kill":
            raise SystemExit("the device thread is told to exit")

    def _outcome(self, sample: Sample) -> ItemScore | ItemFailure:
        if sample.prompt == "failure":
            return ItemFailure(Reason.JUDGE_PARSE, "no number in the judge's answer")
        mean = float(np.mean(sample.image))
        value = float("nan") if sample.prompt == "nan" else mean + len(sample.prompt) / 1000
        details = {"shape": list(sample.image.shape), "metadata": dict(sample.metadata)}
        if sample.prompt == "bad details":
            details["array"] = sample.image
        return ItemScore(
            value=value, scores={"mean": mean, "length": len(sample.prompt)}, details=details
        )

    def warmup_samples(self) -> Sequence[Sample]:
        self._wait_for("warm")
        return [Sample(np.zeros((4, 4, 3), np.uint8), "warm-up")]


if __name__ == "__main__":
    sys.exit(run("fake", FakeScorer, sys.argv[1:], os.environ))
