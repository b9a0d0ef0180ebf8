"""The settings of the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from reward_services.chassis.scorer import ScorerSettings

_LOCAL_ONLY = ("weights", "dtype")
_ENGINE_ONLY = ("model", "api_key", "concurrency", "retries", "timeout_s", "engine_wait_s")


BATCH_ITEMS = 8
"""Few, since an item's answer waits for those of its batch; many batches are asked at the same time."""


def _none(value: object) -> object:
    return None if value == "none" else value


class UnifiedRewardSettings(ScorerSettings):
    service_defaults: ClassVar = {"max_batch_items": BATCH_ITEMS}

    family: Literal["v1", "qwen", "acs", "qwenvl"] = "v1"
    """which judge: what is asked and how the answer is read"""
    score: Literal["strict", "flow_grpo"] = "strict"
    """main score; strict: an answer with a broken number or one outside 1..5 is an error; flow_grpo:
    read as published (10 is 1, 5.9 counts)"""
    prompt_file: Path | None = None
    """template to ask with; none: this project's wording of the family's question"""
    prompt_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """digest that prompt_file must have; none: that of the published prompt"""
    image_size: Annotated[int | None, Field(ge=32, le=4096), BeforeValidator(_none)] = 512
    """side of the square that images are resized to; none: as they come"""
    max_tokens: int = Field(default=1024, ge=8, le=32768)
    """longest answer, tokens"""

    engine_url: str | None = Field(default=None, pattern="^https?://")
    """base URL of an OpenAI-compatible engine, as http://127.0.0.1:17140/v1; none: the model runs in
    this process"""
    model: str | None = None
    """engine only: the model's name there, with or without the folder before it; none: the family's"""
    api_key: SecretStr | None = None
    """engine only: the key that it asks for"""
    concurrency: int = Field(default=256, ge=1, le=1024)
    """engine only: most items asked at a time, in parallel batches of at most 8"""
    retries: int = Field(default=3, ge=0, le=100)
    """engine only: attempts after the first, per item"""
    timeout_s: float = Field(default=120.0, gt=0)
    """engine only: time for one item with all its attempts, seconds"""
    engine_wait_s: float = Field(default=0.0, ge=0)
    """engine only: wait this long at the start for an engine that is loading, seconds"""

    weights: str | None = None
    """in-process only: hub repository[@commit] or local folder; none: the family's repository"""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """in-process only: precision; auto: the checkpoint's"""

    @property
    def parallel_batches(self) -> int:
        """Batches asked at the same time."""
        return max(1, self.concurrency // BATCH_ITEMS) if self.engine_url else 1

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value() if key else "-"
        if not text or not all("!" <= character <= "~" for character in text):
            raise ValueError("the key is empty, or has blanks or characters outside ASCII")
        return key

    @model_validator(mode="after")
    def _fit_together(self) -> UnifiedRewardSettings:
        unused = _LOCAL_ONLY if self.engine_url else _ENGINE_ONLY
        changed = [f for f in unused if getattr(self, f) != type(self).model_fields[f].default]
        if changed:
            fix = "leave engine_url out" if self.engine_url else "set engine_url too"
            raise ValueError(f"{', '.join(changed)} would be ignored: {fix}")
        if self.family == "acs" and self.score == "flow_grpo":
            raise ValueError("flow_grpo has no reader for family acs: score must be strict")
        if self.prompt_sha256 and self.prompt_file is None:
            raise ValueError("prompt_sha256 needs prompt_file")
        return self
