"""[data]: image-text data that a run trains on, alone or beside its samples."""

from __future__ import annotations

from pydantic import Field

from flow_trainer.recipe.section import Section


class Data(Section):
    """Either images or pairs."""

    images: str | None = None
    """Supervised fine-tuning: a folder as `flow-grpo curate` writes it (OUT/data/train) or with captions
    beside its images, or hf:NAME@SPLIT#CAPTION."""
    pairs: str | None = None
    """Flow-DPO: a .jsonl file with prompt, chosen and rejected, the last two paths of images from where
    the file lies."""
    batch: int = Field(default=32, ge=1)
    """Images, or pairs, per optimizer step."""
    levels: int = Field(default=1, ge=1)
    """Noise levels of each, one from each of as many equal parts of the sampling schedule."""
    weight: float = Field(default=1.0, gt=0)
    """Of its loss, beside the one of update.objective."""
    guidance: float = Field(default=1.0, ge=1)
    """Guidance scale of the velocity that is trained; 1, as in pretraining: that of the prompt alone."""
    preference: float = Field(default=100.0, gt=0)
    """b of Flow-DPO: how far it goes from the reference for a preference."""

    @property
    def members(self) -> int:
        """Images of an example: 1, or the two of a pair."""
        return 1 if self.pairs is None else 2
