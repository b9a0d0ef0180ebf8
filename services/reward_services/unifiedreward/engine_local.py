"""The judge in this process: transformers on one device, for a machine without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reward_api.errors import ItemFailure, Reason
from reward_services.chassis.weights import fetch_weights
from reward_services.unifiedreward.engine import Answer, picture
from reward_services.unifiedreward.llava_layout import is_llava_next, load_llava_next
from reward_services.unifiedreward.settings import UnifiedRewardSettings

# Weights; configurations and tokenizers (.json), chat templates (.jinja), merges (.txt).
_FILES = ["config.json", "*.safetensors", "*.[jt]*"]

# The text that flow_grpo sends holds LLaVA's image mark; here the chat template sets it.
_LLAVA_IMAGE_MARK = "<image>\n"

Question = tuple[Image.Image, str]


class LocalEngine:
    """Greedy generation in batches. Whatever transformers knows as image-text-to-text will do
    (Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision), and LLaVA-NeXT's own checkpoints."""

    def __init__(self, settings: UnifiedRewardSettings, source: str, device: str) -> None:
        """Raises WeightsError before it loads torch."""
        weights = fetch_weights(source, files=_FILES)
        import torch

        self.identity = weights.identity
        self._image_size = settings.image_size
        self._max_tokens = settings.max_tokens
        dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        self._processor, model = _load(weights.folder, dtype)
        # Answers start where prompts end: at the same place for the whole batch.
        self._processor.tokenizer.padding_side = "left"
        self._model = model.to(device).eval()
        ends = model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())

    def question(self, image: np.ndarray, text: str) -> Question:
        """Raises ItemFailure for a text that holds the model's own mark of an image."""
        chat = self._processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image"},
                        {"type": "text", "text": text.removeprefix(_LLAVA_IMAGE_MARK)},
                    ],
                }
            ],
            add_generation_prompt=True,
        )
        mark = self._processor.image_token
        if chat.count(mark) != 1:
            raise ItemFailure(
                Reason.SCHEMA, f"the prompt holds {mark}, the model's mark of an image"
            )
        return picture(image, self._image_size), chat

    def is_available(self) -> bool:
        return True

    def answer(self, questions: Sequence[Question]) -> list[Answer | ItemFailure]:
        import torch

        images, texts = zip(*questions, strict=True)
        inputs = self._processor(
            text=list(texts),
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [
            Answer(text.strip(), is_cut=self._ends.isdisjoint(row))
            for text, row in zip(texts, tokens.tolist(), strict=True)
        ]


def _load(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """Processor and model."""
    if is_llava_next(folder):
        return load_llava_next(folder, dtype)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    return AutoProcessor.from_pretrained(folder), model
