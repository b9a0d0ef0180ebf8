"""HPSv2's network: open_clip's ViT-H-14 with the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from reward_services.chassis.weights import WeightsError
from reward_services.clip.gradients import input_gradient
from reward_services.clip.model import pair_cosines, unit

ARCHITECTURE = "ViT-H-14"


class HpsModel:
    """Image-prompt cosines of HPSv2."""

    def __init__(
        self, checkpoint: Path, config: Mapping[str, Any] | None, device: str, dtype: str
    ) -> None:
        """config: open_clip's `model_cfg`; None: ViT-H-14.

        Raises WeightsError when the checkpoint is not of this architecture.
        """
        model = build(config or published_config())
        load_state(model, checkpoint)
        self._device, self._dtype = device, getattr(torch, dtype)
        self._model = model.eval().requires_grad_(False).to(self._device, self._dtype)
        self._tokenizer = SimpleTokenizer(context_length=model.context_length)

    def cosines(self, pixels: np.ndarray, prompts: Sequence[str]) -> list[float]:
        """(N, 3, H, W) normalised pixels, float32 or float16, and their N prompts -> N cosines."""
        return self.compare(pixels, prompts)[0]

    @torch.inference_mode()
    def compare(self, pixels: np.ndarray, prompts: Sequence[str]) -> tuple[list[float], np.ndarray]:
        """`cosines`, and the image embeddings, (N, D) float32 of unit length."""
        images = self._model.encode_image(torch.from_numpy(pixels).to(self._device, self._dtype))
        cosines = pair_cosines(images, prompts, self._text_features)
        return cosines.tolist(), unit(images).cpu().numpy()

    def gradients(self, pixels: np.ndarray, prompts: Sequence[str]) -> tuple[list[float], Tensor]:
        """`cosines`, and each one's gradient with respect to its pixels, float32 (N, 3, H, W)."""

        def score(inputs: Tensor) -> Tensor:
            return self._cosines(inputs, prompts)

        return input_gradient(score, pixels, torch.device(self._device), self._dtype)

    def _cosines(self, inputs: Tensor, prompts: Sequence[str]) -> Tensor:
        return pair_cosines(self._model.encode_image(inputs), prompts, self._text_features)

    @torch.no_grad()
    def _text_features(self, prompts: list[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(prompts).to(self._device))


def published_config() -> dict[str, Any]:
    """HPSv2's own configuration equals open_clip's, value for value."""
    config = open_clip.get_model_config(ARCHITECTURE)
    assert config is not None  # part of open_clip
    return config


def build(config: Mapping[str, Any]) -> Any:
    """open_clip's CLIP without memory for its weights: all of them come from the checkpoint."""
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    # The one tensor that is not in checkpoints: the causal mask of the text tower.
    length = model.context_length
    model.attn_mask = torch.full((length, length), float("-inf")).triu(1)
    return model


def load_state(model: Any, checkpoint: Path) -> None:
    """The published layout: a dict whose `state_dict` has open_clip's names."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise WeightsError(f"{checkpoint.name} has no entry state_dict: it is no HPSv2 checkpoint")
    try:
        model.load_state_dict(content["state_dict"], strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{checkpoint.name} does not fit the architecture: {reason}") from error
