"""CLIP models as transformers loads them, and cosines of image-prompt pairs.

It imports torch, so rewards import it in `load`, once their weights are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reward_services.chassis.weights import WeightsError
from reward_services.clip.device import model_pixels
from reward_services.clip.gradients import input_gradient


class ClipPairs:
    """Both towers of a CLIP model and its tokenizer: how well do images fit their prompts?"""

    def __init__(self, folder: Path, tokenizer_folder: Path, device: str, dtype: str) -> None:
        """folder: `config.json` and `model.safetensors`; tokenizer_folder: `vocab.json` and
        `merges.txt`. The towers run in `dtype`, all that follows them in float32.

        Raises WeightsError when the checkpoint lacks tensors or the tokenizer is another model's.
        """
        # In transformers 4 the one that gives the published token ids; in 5 CLIPTokenizer itself.
        from transformers import (
            CLIPModel,
            CLIPTokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
        )

        model = load_checkpoint(CLIPModel, folder)
        self.scale = model.logit_scale.exp().item()
        """What a logit is to its cosine: exp(logit_scale), about 100 in published checkpoints."""
        text = model.config.text_config
        self._context = text.max_position_embeddings
        self._tokenizer = CLIPTokenizerFast.from_pretrained(tokenizer_folder)
        if len(self._tokenizer) != text.vocab_size:
            raise WeightsError(
                f"the tokenizer in {tokenizer_folder} knows {len(self._tokenizer)} tokens, the model "
                f"in {folder} {text.vocab_size}: they do not belong together"
            )
        self._model = model.to(device, getattr(torch, dtype))

    def cosines(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[float]:
        """(N, H, W, 3) uint8 crops, or (N, 3, H, W) normalised pixels, float32 or float16, and their
        N prompts -> N cosines."""
        return self.compare(pixels, prompts)[0]

    @torch.inference_mode()
    def compare(self, pixels: np.ndarray, prompts: Sequence[str]) -> tuple[list[float], np.ndarray]:
        """`cosines`, and the image embeddings, (N, D) float32 of unit length."""
        inputs = model_pixels(pixels, self._model.device).to(self._model.dtype)
        images = self._image_features(inputs)
        cosines = pair_cosines(images, prompts, self._text_features)
        return cosines.tolist(), unit(images).cpu().numpy()

    def gradients(self, pixels: np.ndarray, prompts: Sequence[str]) -> tuple[list[float], Tensor]:
        """`cosines`, and each one's gradient with respect to its pixels, float32 (N, 3, H, W)."""

        def score(inputs: Tensor) -> Tensor:
            return self._cosines(inputs, prompts)

        return input_gradient(score, pixels, self._model.device, self._model.dtype)

    def _cosines(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        return pair_cosines(self._image_features(inputs), prompts, self._text_features)

    def _image_features(self, inputs: Tensor) -> Tensor:
        return projected(self._model.get_image_features(pixel_values=inputs))

    @torch.no_grad()
    def _text_features(self, prompts: list[str]) -> Tensor:
        tokens = self._tokenizer(
            prompts, padding=True, truncation=True, max_length=self._context, return_tensors="pt"
        ).to(self._model.device)
        return projected(self._model.get_text_features(**tokens))


def load_checkpoint(model_class: Any, folder: Path, **options: Any) -> Any:
    """`from_pretrained` in float32 and evaluation mode, with every tensor from the checkpoint.

    transformers fills tensors that a checkpoint lacks with random numbers and a warning; here that
    is a WeightsError.
    """
    with _quiet():
        model, report = model_class.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
        )
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise WeightsError(
            f"the checkpoint in {folder} lacks {len(lacking)} tensors of {model_class.__name__}, "
            f"or has them in another shape: {lacking[0]}, ..."
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, no table of tensors in a service's log: what matters is checked here."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if has_bars:
            logging.enable_progress_bar()
        logging.set_verbosity(verbosity)


def projected(output: Any) -> Tensor:
    """The projected features: transformers 4 returns the tensor, transformers 5 an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def pair_cosines(
    images: Tensor, prompts: Sequence[str], encode: Callable[[list[str]], Tensor]
) -> Tensor:
    """(N,): cosine of image i and prompt i, in float32. Only these N pairs, never N x N; equal prompts
    (a group of one prompt's images) are encoded once.

    images: (N, D) features of any length; encode: M distinct prompts -> (M, D).
    """
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    texts = unit(encode(list(row_of)))[[row_of[prompt] for prompt in prompts]]
    return (unit(images) * texts).sum(-1)


def unit(features: Tensor) -> Tensor:
    """(N, D) float32 of length 1."""
    return normalize(features.float(), dim=-1)
