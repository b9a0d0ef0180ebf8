"""Which of the ten colors an object has: CLIP ViT-L/14 through open_clip, asked as geneval
@ af4902f asks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import CLIP, SimpleTokenizer, load_checkpoint

from reward_services.chassis.weights import WeightsError
from reward_services.clip.device import model_pixels
from reward_services.clip.pixels import clip_crop
from reward_services.geneval.colors import COLORS, color_texts

_CHUNK = 64  # crops in one forward pass: 39 MB of input, whatever the size of the batch


class ColorClassifier:
    """Zero-shot classification of object crops. The text features of a class are computed once."""

    def __init__(self, model: CLIP, side: int, device: str, dtype: torch.dtype) -> None:
        self._model = model.eval().to(device)
        self._device = torch.device(device)
        self._dtype = dtype
        self._tokenize = SimpleTokenizer(context_length=model.context_length)
        self._text_features: dict[str, torch.Tensor] = {}
        self._side = side

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """A crop (h, w, 3) uint8 RGB as the network's square: the middle of a long object."""
        return clip_crop(crop, self._side, crop="round")

    def classify(self, squares: Sequence[np.ndarray], class_names: Sequence[str]) -> list[str]:
        """The color of each prepared crop, given what the object is."""
        colors: list[str] = []
        for start in range(0, len(squares), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            logits = self.logits(squares[chunk], class_names[chunk])
            colors += [COLORS[index] for index in logits.argmax(dim=1).tolist()]
        return colors

    @torch.inference_mode()
    def logits(self, squares: Sequence[np.ndarray], class_names: Sequence[str]) -> torch.Tensor:
        """(n, 10) float32: 100 times the cosine of each square and each color of its class."""
        texts = torch.stack([self._features_of(name) for name in class_names])
        pixels = model_pixels(np.stack(squares), self._device)
        with self._autocast():
            features = self._model.encode_image(pixels)
        features = F.normalize(features.float(), dim=-1)
        return 100 * torch.einsum("nf,ncf->nc", features, texts)

    def _features_of(self, class_name: str) -> torch.Tensor:
        """(10, features) float32, of unit length."""
        if class_name not in self._text_features:
            texts = [text for color in COLORS for text in color_texts(class_name, color)]
            with self._autocast():
                features = self._model.encode_text(self._tokenize(texts).to(self._device))
            by_color = F.normalize(features.float(), dim=-1).unflatten(0, (len(COLORS), -1))
            self._text_features[class_name] = F.normalize(by_color.mean(dim=1), dim=-1)
        return self._text_features[class_name]

    def _autocast(self) -> torch.autocast:
        enabled = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype, enabled=enabled)


def load_color_classifier(
    config: Path, checkpoint: Path, *, device: str, dtype: str, quick_gelu: bool
) -> ColorClassifier:
    """From open_clip_config.json and open_clip_model.safetensors of a hub repository.

    quick_gelu: the activation that OpenAI's weights were trained with; it is not left to the
    config. dtype: of the forward pass under autocast, as a name of torch's; weights stay float32.
    Raises WeightsError when checkpoint and config do not fit.
    """
    options = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
    model = CLIP(**(options | {"quick_gelu": quick_gelu}))
    try:
        load_checkpoint(model, str(checkpoint))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise WeightsError(f"{checkpoint} does not fit {config.name}: {first[0].strip()}") from None
    side = options["vision_cfg"]["image_size"]
    return ColorClassifier(model, side, device, getattr(torch, dtype))
