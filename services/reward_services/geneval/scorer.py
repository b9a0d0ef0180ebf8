"""The GenEval reward of Flow-GRPO: objects, their number, color and place."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.threads import bound_pool_thread
from reward_services.chassis.weights import Weights, WeightsError, fetch_weights
from reward_services.clip.pixels import check_aspect
from reward_services.geneval.classes import CLASSES
from reward_services.geneval.colors import object_crop
from reward_services.geneval.detections import Detections, Detector
from reward_services.geneval.evaluate import boxes_to_color, evaluate
from reward_services.geneval.findings import Finding, kept_by_class
from reward_services.geneval.prompt_metadata import (
    PromptMetadata,
    metadata_schema,
    parse_metadata,
)

if TYPE_CHECKING:
    from reward_services.geneval.color_classifier import ColorClassifier

RANGES = {
    "flow_grpo": ScoreRange(
        name="flow_grpo",
        minimum=-14.0,
        maximum=1.0,
        description="the published training reward: mean of the clauses' partial values, not clipped",
    ),
    "soft": ScoreRange(
        name="soft",
        minimum=0.0,
        maximum=1.0,
        description="the paper's formula, each part clipped to [0, 1]",
    ),
    "strict": ScoreRange(
        name="strict",
        minimum=0.0,
        maximum=1.0,
        description="1 when every clause is met with exactly its number of objects",
    ),
    "official": ScoreRange(
        name="official",
        minimum=0.0,
        maximum=1.0,
        description="the benchmark's answer: 1 when every clause is met; more objects do no harm",
    ),
}

_DETECTOR_HINT = (
    "set REWARD_GENEVAL_DETECTOR_WEIGHTS (or --detector-weights) to the Mask2Former checkpoint of "
    "mmdet or its folder; the README of the reward says which and where it is"
)

_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
_CROP_THREADS = 8
_BATCH_ITEMS = 16  # 0.8 GB each in the detector: 14 GB with the weights, on a card of 24 GB

Dtype = Literal["float32", "float16", "bfloat16"]


class GenevalSettings(ScorerSettings):
    service_defaults: ClassVar = {"max_batch_items": _BATCH_ITEMS}

    score: Literal["flow_grpo", "soft", "strict", "official"] = "flow_grpo"
    """which sub-score is the main score"""
    compat: Literal["none", "flow_grpo"] = "none"
    """flow_grpo: see images as the published server does: the detector with red and blue exchanged,
    the color classifier with GELU in place of QuickGELU"""
    max_overlap: float = Field(default=1.0, gt=0.0, le=1.0)
    """drop a box that overlaps a surer one of its class this much (IoU); 1: never, as published"""
    detector_weights: str = ""
    """Mask2Former Swin-S checkpoint of mmdet, or the folder with it"""
    clip_weights: str = "timm/vit_large_patch14_clip_224.openai"
    """hub repository[@commit] or local folder: open_clip_config.json and open_clip_model.safetensors
    of OpenAI's CLIP ViT-L/14"""
    detector_dtype: Dtype = "float32"
    """what the detector computes in"""
    clip_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """what the color classifier computes in; auto: float16 on a GPU, float32 on a CPU, as published"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What `prepare` makes of an item."""

    metadata: PromptMetadata
    image: Any
    """As the detector takes it."""


class GenevalScorer(Scorer):
    Settings = GenevalSettings
    settings: GenevalSettings
    detector: Detector
    classifier: ColorClassifier

    def __init__(self, settings: GenevalSettings) -> None:
        super().__init__(settings)
        self._clip_identity = ""
        self._crop_pool = ThreadPoolExecutor(
            _CROP_THREADS, thread_name_prefix="crop", initializer=bound_pool_thread
        )

    def load(self, device: str) -> None:
        checkpoint = _detector_checkpoint(self.settings.detector_weights)
        clip = fetch_weights(self.settings.clip_weights, files=list(_CLIP_FILES))
        from reward_services.geneval.detector import load_detector

        self.detector = load_detector(
            checkpoint,
            device=device,
            swap_channels=self.settings.compat == "flow_grpo",
            dtype=self.settings.detector_dtype,
        )
        self.load_classifier(clip, device)

    def load_classifier(self, weights: Weights, device: str) -> None:
        """The color classifier, from files that are on this machine."""
        from reward_services.geneval.color_classifier import load_color_classifier

        config, checkpoint = map(weights.one, _CLIP_FILES)
        dtype = _clip_dtype(self.settings.clip_dtype, device)
        self.classifier = load_color_classifier(
            config,
            checkpoint,
            device=device,
            dtype=dtype,
            quick_gelu=self.settings.compat == "none",
        )
        self._clip_identity = f"{weights.identity} {dtype}"
        # A warm-up image has no objects to color, so the first forward pass is here.
        grey = np.full((32, 32, 3), 127, np.uint8)
        self.classifier.classify([self.classifier.prepare(grey)], CLASSES[:1])

    def info(self) -> ScorerInfo:
        settings = self.settings
        seen = {
            "none": "",
            "flow_grpo": "; compat=flow_grpo: the detector sees red and blue exchanged, CLIP runs "
            "with GELU, as in the published server",
        }
        identities = f"{self.detector.identity} {self._clip_identity}"
        return ScorerInfo(
            description="GenEval: the prompt's objects, their number, color and place, found by "
            f"Mask2Former and CLIP{seen[settings.compat]}",
            score=RANGES[settings.score],
            sub_scores=list(RANGES.values()),
            metadata_schema=metadata_schema(),
            license="Apache-2.0 (Mask2Former checkpoint of mmdet), MIT (OpenAI CLIP)",
            revision=_revision(settings, identities),
        )

    def prepare(self, sample: Sample) -> Asked:
        check_aspect(sample.image)  # of a strip the detector's scale leaves no row
        metadata = parse_metadata(sample.metadata)
        return Asked(metadata, self.detector.prepare(sample.image))

    def batch_key(self, sample: Sample) -> Hashable:
        # Images of one shape need no padding to each other, which the detector would see.
        return sample.image.shape

    def warmup_samples(self) -> Sequence[Sample]:
        metadata = {"tag": "single_object", "include": [{"class": "cup", "count": 1}]}
        return [replace(sample, metadata=metadata) for sample in super().warmup_samples()]

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        found = self.detector.detect_prepared([sample.prepared.image for sample in batch])
        findings = [self._finding(*pair) for pair in zip(batch, found, strict=True)]
        self._color(findings)
        return [self._score(finding) for finding in findings]

    def _finding(self, sample: Sample, detections: Detections) -> Finding:
        kept = kept_by_class(
            detections, sample.prepared.metadata.tag, max_overlap=self.settings.max_overlap
        )
        return Finding(sample, detections, kept)

    def _color(self, findings: Sequence[Finding]) -> None:
        """Colors the objects of the whole batch together."""
        asked = [
            (finding, index)
            for finding in findings
            for index in boxes_to_color(finding.sample.prepared.metadata, finding.kept)
        ]
        squares = list(self._crop_pool.map(lambda pair: self._square(*pair), asked))
        names = [CLASSES[finding.detections.labels[index]] for finding, index in asked]
        colors = self.classifier.classify(squares, names)
        for (finding, index), color in zip(asked, colors, strict=True):
            finding.colors[index] = color

    def _square(self, finding: Finding, index: int) -> np.ndarray:
        detections = finding.detections
        crop = object_crop(finding.sample.image, detections.boxes[index], detections.masks[index])
        return self.classifier.prepare(crop)

    def _score(self, finding: Finding) -> ItemScore:
        evaluation = evaluate(finding.sample.prepared.metadata, finding.scene())
        details = None
        if finding.sample.include_details:
            details = {"boxes": finding.box_details(), "clauses": evaluation.clauses}
        value = evaluation.scores[self.settings.score]
        return ItemScore(value=value, scores=evaluation.scores, details=details)


def _detector_checkpoint(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not weights or not path.exists():
        missing = f"there is no {weights}" if weights else "no detector weights are given"
        raise WeightsError(f"{missing}: {_DETECTOR_HINT}")
    return path


def _clip_dtype(setting: str, device: str) -> str:
    if setting != "auto":
        return setting
    return "float32" if device == "cpu" else "float16"


def _revision(settings: GenevalSettings, weights: str) -> str:
    """12 hex digits that change with all that can change a score."""
    places = {"detector_weights", "clip_weights"}
    scoring = settings.model_dump_json(exclude=places)
    return hashlib.sha256(f"{scoring} {weights}".encode()).hexdigest()[:12]


SCORER = GenevalScorer
