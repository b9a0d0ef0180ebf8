"""The image tower of CLIP ViT-L/14, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from reward_services.clip.device import model_pixels
from reward_services.clip.gradients import input_gradient
from reward_services.clip.model import load_checkpoint, unit


class ImageTower:
    """Projected image features. The text tower in the checkpoint is not loaded."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        """Raises WeightsError when the checkpoint lacks tensors of the tower."""
        config: Any = CLIPConfig.from_pretrained(folder)
        vision = config.vision_config
        # What the projection of both towers follows; the tower's own copy may be a default.
        vision.projection_dim = config.projection_dim
        model = load_checkpoint(CLIPVisionModelWithProjection, folder, config=vision)
        self.width: int = vision.projection_dim
        self._model = model.to(device, getattr(torch, dtype))

    def gradients(
        self, pixels: np.ndarray, weight: np.ndarray, bias: float
    ) -> tuple[list[float], Tensor]:
        """weight . feature + bias of N pictures, in float64, and each one's gradient with respect to its
        pixels, float32 (N, 3, H, W)."""
        direction = torch.from_numpy(weight).to(self._model.device)

        def score(inputs: Tensor) -> Tensor:
            features = unit(self._model(pixel_values=inputs).image_embeds)
            return features.double() @ direction + bias

        return input_gradient(score, pixels, self._model.device, self._model.dtype)

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 crops, or (N, 3, H, W) float32 normalised pixels ->
        (N, width) float32 of unit length."""
        inputs = model_pixels(pixels, self._model.device).to(self._model.dtype)
        return unit(self._model(pixel_values=inputs).image_embeds).cpu().numpy()
