"""DeQA-Score-Mix3 (arXiv 2501.11561): the image's quality, as a language model rates it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reward_api.wire.messages import ItemScore, ScoreRange
from reward_services.chassis.scorer import Sample, Scorer, ScorerInfo, ScorerSettings
from reward_services.chassis.weights import Weights, WeightsError, fetch_weights
from reward_services.deqa import levels, prompt
from reward_services.deqa.config import Config, read_config
from reward_services.deqa.pixels import jpeg_copy, seen

RANGES = {
    "deqa": ScoreRange(
        name="deqa", minimum=0.2, maximum=1.0, description="level / 5, flow_grpo's reward"
    ),
    "level": ScoreRange(
        name="level",
        minimum=1.0,
        maximum=5.0,
        description="expected level from 1 (bad) to 5 (excellent), as papers report it",
    ),
}


class DeqaSettings(ScorerSettings):
    weights: str = "zhiyuanyou/DeQA-Score-Mix3@246e219b7e3bc9b5dff5269c1a8564087aefca3f"
    """hub repository[@commit] or local folder: config.json, the index and its shards"""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """number format of the model; auto: float16 (the original's) on a GPU, float32 on a CPU"""
    compat: Literal["none", "flow_grpo"] = "none"
    """flow_grpo: rate a JPEG copy of quality 75, as its published server does"""


class DeqaScorer(Scorer):
    Settings = DeqaSettings
    settings: DeqaSettings

    def load(self, device: str) -> None:
        weights = fetch_shards(self.settings.weights)
        dtype = self.settings.dtype
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "float16"
        self._revision = f"{weights.identity} {dtype} {self.settings.compat}"
        index = index_of(weights)
        config = read_config(index.with_name("config.json"))
        check_vocabulary(config)

        import torch

        from reward_services.deqa.checkpoint import load
        from reward_services.deqa.model import Judge

        self._side = config.vision.image_size
        self._judge = Judge(load(config, index, device, getattr(torch, dtype)))

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            description="DeQA-Score-Mix3: image quality as a language model rates it",
            score=RANGES["deqa"],
            sub_scores=list(RANGES.values()),
            license="weights: LLaMA 2 Community License (base model), DeQA-Score: MIT",
            revision=self._revision,
        )

    def prepare(self, sample: Sample) -> np.ndarray:
        image = sample.image
        if self.settings.compat == "flow_grpo":
            image = jpeg_copy(image)
        return seen(image, self._side)

    def score(self, batch: Sequence[Sample]) -> Sequence[ItemScore]:
        logits = self._judge.level_logits(np.stack([sample.prepared for sample in batch]))
        rated = levels.probabilities(logits)
        return [_score(*pair) for pair in zip(batch, rated, strict=True)]


def _score(sample: Sample, probabilities: np.ndarray) -> ItemScore:
    level = float(levels.level(probabilities))
    details: dict[str, Any] | None = None
    if sample.include_details:
        details = {"probabilities": dict(zip(prompt.LEVELS, probabilities.tolist(), strict=True))}
    return ItemScore(value=level / 5, scores={"deqa": level / 5, "level": level}, details=details)


def fetch_shards(source: str) -> Weights:
    """config.json, the index and the shards that it names: no file of another format is fetched."""
    described = fetch_weights(source, files=("config.json", "*.index.json"))
    index = index_of(described)
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return fetch_weights(source, files=("config.json", index.name, *shards))


def index_of(weights: Weights) -> Path:
    """The index of the safetensors, else that of the .bin files."""
    found = {path.name: path for path in weights.files}
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if name in found:
            return found[name]
    raise WeightsError(f"{weights.folder} holds no model.safetensors.index.json")


def check_vocabulary(config: Config) -> None:
    """Raises WeightsError unless the model speaks LLaMA-2's tokens, in which `prompt` is written."""
    known = tuple(prompt.LEVELS.values())
    if config.vocab_size != prompt.VOCABULARY or config.level_ids not in ((), known):
        raise WeightsError(
            f"config.json has vocab_size {config.vocab_size} and level_ids {config.level_ids}: "
            "not LLaMA-2's tokens"
        )


SCORER = DeqaScorer
