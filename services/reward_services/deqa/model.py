"""DeQA-Score's network, mPLUG-Owl2 (arXiv 2311.04257), written for the published checkpoint.

Original: DeQA-Score @ 8e4abc8. Attribute names are the checkpoint's, so its tensors fit as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from reward_services.clip.device import model_pixels
from reward_services.deqa import prompt
from reward_services.deqa.abstractor import VisualAbstractor
from reward_services.deqa.config import Config
from reward_services.deqa.decoder import DecoderLayer, KeysValues, RmsNorm, length, rotation
from reward_services.deqa.vision import VisionTower

NO_IMAGE = slice(0, 0)


class MplugOwl2(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = _Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def image_rows(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) normalised -> (N, queries + 1, width): what stands for the image."""
        return self.model.visual_abstractor(self.model.vision_model(pixels))

    def text_rows(self, ids: Sequence[int]) -> Tensor:
        """Token ids -> (1, L, width)."""
        embeddings = self.model.embed_tokens
        return embeddings(torch.tensor([ids], device=embeddings.weight.device))

    def decode(
        self,
        rows: Tensor,
        image: slice,
        past: Sequence[KeysValues] | None = None,
        keep: list[KeysValues] | None = None,
    ) -> Tensor:
        """(N, L, width), of which `image` are the image's rows -> states before the final norm.

        past: what an earlier call kept for the rows before these, which all N share.
        keep: a list that gets each layer's keys and values of all rows so far.
        """
        config, start = self.config, length(past)
        head_width = config.hidden_size // config.num_attention_heads
        turns = rotation(range(start, start + rows.shape[1]), head_width, config.rope_theta, rows)
        for index, layer in enumerate(self.model.layers):
            rows, keys_values = layer(rows, image, turns, past[index] if past else None)
            if keep is not None:
                keep.append(keys_values)
        return rows


class _Backbone(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, layers = config.hidden_size, range(config.num_hidden_layers)
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in layers)
        self.norm = RmsNorm(width, config.rms_norm_eps)
        self.vision_model = VisionTower(config.vision)
        self.visual_abstractor = VisualAbstractor(config.abstractor, config.vision.grid, width)


class Judge:
    """The model with DeQA's question: what does not depend on the image is computed once."""

    @torch.inference_mode()
    def __init__(self, model: MplugOwl2) -> None:
        self.model = model.eval()
        self._before: list[KeysValues] = []
        model.decode(model.text_rows(prompt.BEFORE_IMAGE), NO_IMAGE, keep=self._before)
        self._after = model.text_rows(prompt.AFTER_IMAGE)
        self._levels = model.lm_head.weight[list(prompt.LEVELS.values())]

    @torch.inference_mode()
    def level_logits(self, pixels: np.ndarray) -> np.ndarray:
        """(N, S, S, 3) uint8, or (N, 3, S, S) float32 normalised -> (N, 5): excellent, good, fair,
        poor, bad."""
        image = self.model.image_rows(model_pixels(pixels, self._after.device).to(self._after))
        rows = torch.cat([image, self._after.expand(len(image), -1, -1)], 1)
        states = self.model.decode(rows, slice(0, image.shape[1]), self._before)
        last = self.model.model.norm(states[:, -1])
        return linear(last, self._levels).float().cpu().numpy()
