"""ImageReward-v1.0 (arXiv 2304.05977): BLIP's two towers of transformers, and a head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from reward_services.chassis.weights import WeightsError
from reward_services.clip.device import model_pixels
from reward_services.clip.gradients import input_gradient
from reward_services.imagereward.checkpoint import read_checkpoint, text_config, vision_config

# The gaps are the original's dropouts; there is no activation between the layers.
_HEAD_LAYERS = ("0", "2", "4", "6", "7")
_HEAD_SIZES = (1024, 128, 64, 16, 1)


class ImageReward(nn.Module):
    """Original: ImageReward @ c1392c6, class ImageReward. Attribute names follow `checkpoint.renamed`."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, *_HEAD_SIZES)
        layers = (nn.Linear(*pair) for pair in pairwise(widths))
        self.head = nn.Sequential(OrderedDict(zip(_HEAD_LAYERS, layers, strict=True)))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards (N,) of N pairs: pixels (N, 3, 224, 224), token ids and mask (N, L)."""
        image = self.vision(pixel_values=pixels).last_hidden_state
        states = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=image
        ).last_hidden_state
        return self.head(states[:, 0]).squeeze(-1)

    def gradients(
        self, pixels: np.ndarray, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]
    ) -> tuple[list[float], Tensor]:
        """`rewards`, and each one's gradient with respect to its pixels, float32 (N, 3, 224, 224)."""
        device = self.text.device
        tokens, seen = torch.tensor(ids, device=device), torch.tensor(mask, device=device)

        def score(inputs: Tensor) -> Tensor:
            return self(inputs, tokens, seen)

        return input_gradient(score, pixels, device, torch.float32)

    @torch.inference_mode()
    def rewards(
        self, pixels: np.ndarray, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]]
    ) -> list[float]:
        """`forward` on the model's device; pixels: (N, H, W, 3) uint8 crops, or (N, 3, H, W) float32
        normalised."""
        device = self.text.device
        tokens = (torch.tensor(numbers).to(device) for numbers in (ids, mask))
        return self(model_pixels(pixels, device), *tokens).tolist()


def load(checkpoint: Path, med_config: Path, device: str) -> ImageReward:
    """The published model in float32 on `device`. Raises WeightsError where names or shapes differ."""
    tensors = read_checkpoint(checkpoint, device)
    vision = vision_config(tensors)
    return assembled(vision, text_config(med_config, vision.hidden_size), tensors)


def assembled(
    vision: BlipVisionConfig, text: BlipTextConfig, tensors: Mapping[str, Tensor]
) -> ImageReward:
    """A model that owns `tensors` (renamed, all on one device): nothing is allocated or copied."""
    with torch.device("meta"):
        model = ImageReward(vision, text)
    _check(model, tensors)
    model.load_state_dict(tensors, assign=True)
    # The one tensor that is in no checkpoint.
    positions = torch.arange(text.max_position_embeddings, device=tensors["head.0.weight"].device)
    model.text.embeddings.register_buffer("position_ids", positions[None], persistent=False)
    return model.eval().requires_grad_(False)


def _check(model: ImageReward, tensors: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected == found:
        return
    for fault, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has unknown", found.keys() - expected.keys()),
        (
            "has other shapes of",
            {n for n in expected.keys() & found.keys() if expected[n] != found[n]},
        ),
    ):
        if names:
            raise WeightsError(
                f"the checkpoint of ImageReward {fault} {len(names)} tensors, first {min(names)}"
            )
