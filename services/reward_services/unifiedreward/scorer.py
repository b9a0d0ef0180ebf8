"""UnifiedReward (arXiv 2503.05236) and its relatives: a vision-language model grades the image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from reward_api.errors import ItemFailure, Reason
from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo
from reward_services.unifiedreward.answers import (
    HIGHEST,
    LOWEST,
    Mark,
    is_unfinished_thought,
    without_last_word,
)
from reward_services.unifiedreward.engine import Answer, Engine
from reward_services.unifiedreward.families import FAMILIES, Family
from reward_services.unifiedreward.prompts import PromptTemplate, load_prompt
from reward_services.unifiedreward.settings import UnifiedRewardSettings

_QUOTED = 160

STRICT = ScoreRange(
    name="strict",
    minimum=LOWEST / HIGHEST,
    maximum=1.0,
    description="the judge's number (of several the mean) / 5; other answers are errors",
)
FLOW_GRPO = ScoreRange(
    name="flow_grpo",
    minimum=0.0,
    description="the judge's number / 5 as the official code reads it, which can exceed 1",
)


class UnifiedRewardScorer(Scorer):
    Settings = UnifiedRewardSettings
    settings: UnifiedRewardSettings
    engine: Engine
    family: Family
    prompt: PromptTemplate

    @property
    def parallel_batches(self) -> int:
        return self.settings.parallel_batches

    def load(self, device: str) -> None:
        self.family = FAMILIES[self.settings.family]
        self.prompt = _prompt(self.settings, self.family)
        self.engine = _engine(self.settings, self.family, device)
        # Not as the chassis' warm-up, which would take an answer without a score for a failure.
        grey = np.full((512, 512, 3), 127, np.uint8)
        (answer,) = self.engine.answer([self.engine.question(grey, self.prompt.ask("a grey wall"))])
        if isinstance(answer, ItemFailure):
            raise answer

    def warmup_samples(self) -> Sequence[Sample]:
        return ()

    def info(self) -> ScorerInfo:
        ranges = self._ranges()
        prompt = f"prompt: {self.prompt.source}, sha256 {self.prompt.sha256}"
        return ScorerInfo(
            description=f"A vision-language model grades the image ({self.engine.identity}; {prompt})",
            score=ranges[self.settings.score],
            sub_scores=list(ranges.values()),
            prompt_required=self.prompt.reads_caption,
            license=f"{self.family.license} ({self.family.weights})",
            revision=_revision(self.settings, self.prompt, self.engine.identity),
        )

    def is_available(self) -> bool:
        return self.engine.is_available()

    def prepare(self, sample: Sample) -> Any:
        return self.engine.question(sample.image, self.prompt.ask(sample.prompt))

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore | ItemFailure]:
        answers = self.engine.answer([sample.prepared for sample in batch])
        return [self._outcome(s, answer) for s, answer in zip(batch, answers, strict=True)]

    def _outcome(self, sample: Sample, answer: Answer | ItemFailure) -> ItemScore | ItemFailure:
        if isinstance(answer, ItemFailure):
            return answer
        marks = self.family.read(without_last_word(answer.text) if answer.is_cut else answer.text)
        if problem := self._problem(marks, sample.prompt, answer):
            return _unreadable(problem, answer)
        scores = self._scores(marks)
        details = self._details(answer) if sample.include_details else None
        return ItemScore(value=scores[self.settings.score], scores=scores, details=details)

    def _problem(self, marks: Mapping[str, Mark], prompt: str, answer: Answer) -> str:
        """Why there is no score; empty when there is one."""
        missing = [name for name in self.family.marks if name not in marks]
        if missing:
            return f"the answer gives no {', '.join(missing)}"
        if self.settings.score != "strict":
            return ""
        broken = [name for name in self.family.marks if not marks[name].is_clean]
        if broken:
            return f"the answer's {', '.join(broken)} is not one number from 1 to 5"
        if is_unfinished_thought(answer.text):
            return "the answer ends before its verdict"
        if answer.is_cut and self.family.read(prompt):  # the judge may only have quoted it
            return "the prompt states a score itself, and the answer ends before its verdict"
        return ""

    def _scores(self, marks: Mapping[str, Mark]) -> dict[str, float]:
        scores = {name: marks[name].value for name in self.family.marks}
        mean = sum(scores.values()) / len(scores) / HIGHEST
        if len(self.family.marks) == 1:
            scores["flow_grpo"] = mean
        if all(marks[name].is_clean for name in self.family.marks):
            scores["strict"] = mean
        return scores

    def _ranges(self) -> dict[str, ScoreRange]:
        ranges = {"strict": STRICT}
        if len(self.family.marks) == 1:
            ranges["flow_grpo"] = FLOW_GRPO
        lowest, highest = (LOWEST, HIGHEST) if self.settings.score == "strict" else (0.0, None)
        for name in self.family.marks:
            ranges[name] = ScoreRange(
                name=name, minimum=lowest, maximum=highest, description="the judge's number"
            )
        return ranges

    def _details(self, answer: Answer) -> dict[str, Any]:
        return {
            "answer": answer.text,
            "is_cut": answer.is_cut,
            "model": self.engine.identity,
            "prompt_sha256": self.prompt.sha256,
        }


def _prompt(settings: UnifiedRewardSettings, family: Family) -> PromptTemplate:
    if settings.prompt_file is None:
        return PromptTemplate(family.prompt, "own wording")
    return load_prompt(
        settings.prompt_file, published=family.published_prompt, expected=settings.prompt_sha256
    )


def _engine(settings: UnifiedRewardSettings, family: Family, device: str) -> Engine:
    if settings.engine_url is not None:
        from reward_services.unifiedreward.engine_http import HttpEngine

        return HttpEngine(settings, settings.model or family.model)
    if find_spec("transformers") is None:
        raise ImportError(
            "name an engine (--engine-url), or pip install 'flow-rewards[unifiedreward-local]' to run "
            "the model here"
        )
    from reward_services.unifiedreward.engine_local import LocalEngine

    return LocalEngine(settings, settings.weights or family.weights, device)


def _unreadable(problem: str, answer: Answer) -> ItemFailure:
    cut = ", which was cut off at max_tokens" if answer.is_cut else ""
    text = answer.text if len(answer.text) <= _QUOTED else answer.text[:_QUOTED] + "..."
    return ItemFailure(Reason.JUDGE_PARSE, f"{problem}{cut}: {text!r}")


def _revision(settings: UnifiedRewardSettings, prompt: PromptTemplate, model: str) -> str:
    """12 hex digits that change with all that can change a score."""
    scoring = settings.model_dump_json(
        include={"family", "score", "image_size", "max_tokens", "dtype"}
    )
    return hashlib.sha256(f"{scoring} {prompt.sha256} {model}".encode()).hexdigest()[:12]


SCORER = UnifiedRewardScorer
