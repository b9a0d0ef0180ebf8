"""The OCR reward of Flow-GRPO: how much of the prompt's quoted text stands in the image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.ocr.engine import Engine, Line
from reward_services.ocr.match import sub_scores, target_text

RANGES = {
    "flow_grpo": ScoreRange(
        name="flow_grpo",
        minimum=0.0,
        maximum=1.0,
        description="as the official code: similarity, but 1 when the text contains the target",
    ),
    "similarity": ScoreRange(
        name="similarity",
        minimum=0.0,
        maximum=1.0,
        description="as the paper: max(1 - edit distance / target length, 0)",
    ),
    "exact": ScoreRange(
        name="exact", minimum=0.0, maximum=1.0, description="1 when the text is the target, else 0"
    ),
}


class OcrSettings(ScorerSettings):
    score: Literal["flow_grpo", "similarity", "exact"] = "flow_grpo"
    """which sub-score is the main score"""
    engine: Literal["rapidocr", "paddleocr"] = "rapidocr"
    """what reads the text"""
    detect: bool = True
    """find the lines first; without, the whole image is one line (fast, for tight crops)"""
    detect_min_side: int = Field(default=128, ge=32, le=960)
    """enlarge images whose shorter side has fewer pixels to this before detection"""
    min_confidence: float = Field(default=0.5, ge=0.0, le=1.0)
    """drop lines that the recogniser is less sure of (PaddleOCR's drop_score)"""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0: one per core, at most 8"""
    runtime: Literal["onnxruntime", "paddle"] = "onnxruntime"
    """paddleocr only: what runs its networks; paddle needs the package paddlepaddle"""
    detector: str = "PP-OCRv6_small_det"
    """paddleocr only: its name of the detection network"""
    recogniser: str = "PP-OCRv6_small_rec"
    """paddleocr only: its name of the recognition network"""
    detector_dir: Path | None = None
    """paddleocr only: folder of the detection network; none: PaddleOCR downloads it"""
    recogniser_dir: Path | None = None
    """paddleocr only: folder of the recognition network; none: PaddleOCR downloads it"""

    @model_validator(mode="after")
    def _rapidocr_has_its_own_networks(self) -> OcrSettings:
        fields = {"runtime", "detector", "recogniser", "detector_dir", "recogniser_dir"}
        unused = sorted(f for f in fields if getattr(self, f) != type(self).model_fields[f].default)
        if self.engine == "rapidocr" and unused:
            raise ValueError(
                f"{', '.join(unused)}: set engine=paddleocr too; rapidocr runs the networks of its "
                "own wheel"
            )
        return self


class OcrScorer(Scorer):
    Settings = OcrSettings
    auto_device = "cpu"
    settings: OcrSettings
    engine: Engine

    def load(self, device: str) -> None:
        self.engine = load_engine(self.settings, device)

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="Text rendering: the prompt's quoted text against what an OCR engine reads",
            score=RANGES[self.settings.score],
            sub_scores=list(RANGES.values()),
            prompt_required=True,
            license="Apache-2.0 (PP-OCR weights, PaddleOCR, RapidOCR)",
            revision=_revision(self.settings, self.engine.identity),
        )

    def prepare(self, sample: Sample) -> str:
        return target_text(sample.prompt)

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        readings = self.engine.read([sample.image for sample in batch])
        return [self._score(sample, lines) for sample, lines in zip(batch, readings, strict=True)]

    def _score(self, sample: Sample, lines: Sequence[Line]) -> ItemScore:
        target: str = sample.prepared
        text = joined_text(lines, self.settings.min_confidence)
        scores = sub_scores(text, target)
        details = self._details(target, text, lines) if sample.include_details else None
        return ItemScore(value=scores[self.settings.score], scores=scores, details=details)

    def _details(self, target: str, text: str, lines: Sequence[Line]) -> dict[str, Any]:
        return {
            "target": target,
            "text": text,
            "lines": [
                {
                    "text": line.text,
                    "confidence": line.confidence,
                    "box": [list(corner) for corner in line.box],
                }
                for line in lines
            ],
            "engine": self.engine.identity,
        }


def joined_text(lines: Sequence[Line], min_confidence: float) -> str:
    """The lines that are sure enough, in reading order, with nothing between (as flow_grpo, which
    never uses a confidence of 0)."""
    return "".join(
        line.text for line in lines if line.confidence > 0 and line.confidence >= min_confidence
    )


def load_engine(settings: OcrSettings, device: str) -> Engine:
    """The engine of the settings, ready to read. Raises ImportError when its package is missing."""
    threads = settings.threads or min(_cores(), 8)
    if settings.engine == "rapidocr":
        from reward_services.ocr.rapidocr_engine import RapidOcrEngine

        return RapidOcrEngine(
            device, detect=settings.detect, min_side=settings.detect_min_side, threads=threads
        )
    from reward_services.ocr.paddleocr_engine import PaddleOcrEngine

    return PaddleOcrEngine(
        device,
        detect=settings.detect,
        min_side=settings.detect_min_side,
        threads=threads,
        runtime=settings.runtime,
        detector=settings.detector,
        detector_dir=settings.detector_dir,
        recogniser=settings.recogniser,
        recogniser_dir=settings.recogniser_dir,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: those that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _revision(settings: OcrSettings, engine: str) -> str:
    """12 hex digits that change with all that can change a score."""
    scoring = settings.model_dump_json(exclude={"threads", "detector_dir", "recogniser_dir"})
    return hashlib.sha256(f"{scoring} {engine}".encode()).hexdigest()[:12]


SCORER = OcrScorer
