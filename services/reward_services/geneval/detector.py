"""GenEval's detector: Mask2Former with a Swin-S backbone, instance segmentation on COCO, by mmdet.

The network and its configuration are mmdet 3.3.0's. Around it, what mmdet does for one image at a
time is done here for a batch, with the same results (`mmdet.apis.inference_detector` is the
reference of the tests): resize on the CPU, normalise, one forward, the 100 best (query, class) pairs.

Memory beyond the weights (68.7 M parameters, 275 MB): 0.8 GB for each image of a batch at 800x800
in float32, measured on a CPU (peaks of 1.6, 2.4 and 3.2 GB for 1, 2 and 3 images). Most of it is

- the mask logits of the head's ten prediction steps, 10 x 100 x 200 x 200 x 4 B = 160 MB;
- plain deformable attention, which samples 13,125 tokens x 3 levels x 4 points x 256 channels x 4 B =
  161 MB and copies them twice, one layer after the other;
- masks at full size. mmdet enlarges all 100 queries to 800x800, 256 MB. But a score is a class
  probability times a mean of sigmoids, so never above the probability: only pairs whose probability
  exceeds 0.3 are enlarged here, 2.6 MB each, with the same result.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from reward_services.geneval import mmcv_ops
from reward_services.geneval.checkpoint import (
    find_checkpoint,
    load_into,
    read_config,
    read_weights,
)
from reward_services.geneval.detections import MIN_SCORE, Detections
from reward_services.geneval.openmmlab import Config, DefaultScope, imrescale

_SURELY_BELOW = MIN_SCORE - 1e-3  # a class probability that no rounding makes a score above it
_GREY = 128.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image at the network's scale."""

    pixels: np.ndarray
    """(h, w, 3) uint8 or float32 (as resized), 0..255, RGB."""
    size: tuple[int, int]
    """Height and width of the image itself."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """mmdet's test pipeline, of which two versions are in use."""

    scale: tuple[int, int]
    """Longest and shortest side: the image becomes as large as both allow, its aspect kept."""
    as_float: bool
    """Resize in float32 (mmdet 3.x) or in uint8, so to whole grey levels (2.x)."""
    pad_with_grey: bool
    """Fill up with 128 before normalisation (2.x) or after it with the configuration's value."""

    @staticmethod
    def of(config: Config, *, published: bool) -> Preprocessing:
        """published: as the benchmark, which runs mmdet 2.x, else as the configuration says."""
        steps = {step.type: step for step in config.test_dataloader.dataset.pipeline}
        scale = tuple(steps["Resize"].scale)
        if published:
            return Preprocessing(scale, as_float=False, pad_with_grey=True)
        as_float = steps["LoadImageFromFile"].get("to_float32", False)
        return Preprocessing(scale, as_float, pad_with_grey=False)

    def prepare(self, image: np.ndarray) -> Prepared:
        """image: (H, W, 3) uint8 RGB. The work of a CPU; any thread may call it."""
        pixels = image.astype(np.float32) if self.as_float else image
        resized = cast(np.ndarray, imrescale(pixels, self.scale, backend="cv2"))
        return Prepared(resized, image.shape[:2])


class Mask2Former:
    """A `Detector`. `detect` is meant for one thread, `prepare` for any."""

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing,
        *,
        identity: str,
        swap_channels: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.identity = identity
        self.prepare = preprocessing.prepare
        self._model = model
        self._swap_channels = swap_channels
        self._dtype = dtype
        self._classes = model.panoptic_head.num_classes
        self._pairs = model.test_cfg.max_per_image
        normalisation = model.data_preprocessor
        self._mean, self._std = normalisation.mean, normalisation.std  # (3, 1, 1) each
        self._step = normalisation.pad_size_divisor
        self._padding = torch.full_like(self._mean, float(normalisation.pad_value))
        if preprocessing.pad_with_grey:
            self._padding = (_GREY - self._mean) / self._std

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """images: (H, W, 3) uint8 RGB each; those of one size share a forward.

        Raises FloatingPointError when the network's answer is not finite (float16 may overflow).
        """
        return self.detect_prepared([self.prepare(image) for image in images])

    def detect_prepared(self, images: Sequence[Prepared]) -> list[Detections]:
        """`detect` for what `prepare` returned."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            by_shape[image.pixels.shape].append(index)
        found: dict[int, Detections] = {}
        for indices in by_shape.values():
            found |= zip(indices, self._detect_alike([images[i] for i in indices]), strict=True)
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _detect_alike(self, images: Sequence[Prepared]) -> list[Detections]:
        batch = self._normalised(np.stack([image.pixels for image in images]))
        with torch.autocast(
            batch.device.type, self._dtype, enabled=self._dtype is not torch.float32
        ):
            features = self._model.extract_feat(batch)
            # The second argument, mmdet's data samples, is not read.
            class_logits, mask_logits = (
                last[-1] for last in self._model.panoptic_head(features, [])
            )
        if not (class_logits.isfinite().all() and mask_logits.isfinite().all()):
            raise FloatingPointError("the detector's logits are not finite")
        return [
            self._instances(classes.float(), masks.float(), batch.shape[-2:], image)
            for classes, masks, image in zip(class_logits, mask_logits, images, strict=True)
        ]

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        """(N, h, w, 3) RGB -> (N, 3, H, W), H and W the next multiples of the network's step."""
        planes = torch.from_numpy(pixels).to(self._mean.device)
        if self._swap_channels:
            planes = planes.flip(-1)
        planes = planes.permute(0, 3, 1, 2).contiguous()
        planes = (planes.float() - self._mean) / self._std
        height, width = planes.shape[-2:]
        rows, columns = -height % self._step, -width % self._step
        if not rows and not columns:
            return planes
        shape = (len(planes), 3, height + rows, width + columns)
        padded = self._padding.expand(shape).contiguous()
        padded[..., :height, :width] = planes
        return padded

    def _instances(
        self,
        class_logits: torch.Tensor,
        mask_logits: torch.Tensor,
        padded: Sequence[int],
        image: Prepared,
    ) -> Detections:
        """class_logits (queries, classes + 1), mask_logits (queries, h, w) of one image."""
        probabilities = F.softmax(class_logits, dim=-1)[:, :-1].flatten()
        best, pairs = probabilities.topk(self._pairs, sorted=False)
        hopeful = best > _SURELY_BELOW
        best, pairs = best[hopeful], pairs[hopeful]
        logits = _enlarged(mask_logits[pairs // self._classes], padded, image)
        masks = logits > 0
        sureness = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
        scores = (best * sureness).cpu().numpy()
        kept = scores > np.float32(MIN_SCORE)
        instances = masks.cpu().numpy()[kept]
        return Detections(
            labels=(pairs % self._classes).cpu().numpy()[kept],
            scores=scores[kept],
            boxes=tight_boxes(instances),
            masks=instances,
        )


def _enlarged(logits: torch.Tensor, padded: Sequence[int], image: Prepared) -> torch.Tensor:
    """(n, h, w) at a quarter of the input's size -> (n, H, W) of the image, in mmdet's two steps."""
    height, width = image.pixels.shape[:2]
    at_input = _bilinear(logits, padded)[:, :height, :width]
    return _bilinear(at_input, image.size)


def _bilinear(planes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(planes[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """(n, H, W) bool -> (n, 4) float32: first column and row, one past the last ones; zeros for an
    empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
        if len(columns):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def load_detector(
    path: Path, *, device: str, swap_channels: bool = False, dtype: str = "float32"
) -> Mask2Former:
    """The detector of GenEval, ready on `device`.

    path: the published `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth`
    (or mmdet 3.x's conversion of it), alone or as the only file of a folder: then images are
    prepared as in the benchmark, by mmdet 2.x's rules. Or a folder with weights and a configuration
    in Python: then its test pipeline and padding hold.

    swap_channels: red and blue exchanged in front of the network, as flow_grpo's reward server
    (reward-server @ 92ac29f) does by giving RGB arrays to a pipeline that expects BGR.
    dtype: "float32", or "float16" or "bfloat16" for autocast.

    Raises WeightsError.
    """
    checkpoint = find_checkpoint(path)
    config = read_config(checkpoint.config)
    model = build(config)
    load_into(model, read_weights(checkpoint.weights), checkpoint.weights)
    versions = f"mmdet {version('mmdet')} opencv {cv2.__version__}"
    identity = f"{versions} {checkpoint.digest(config)}"
    if swap_channels:
        identity += " channels-swapped"
    if dtype != "float32":
        identity += f" {dtype}"
    return Mask2Former(
        model.to(device).eval(),
        Preprocessing.of(config, published=checkpoint.config is None),
        identity=identity,
        swap_channels=swap_channels,
        dtype=getattr(torch, dtype),
    )


def build(config: Config) -> Any:
    """The network of a configuration with random weights, an mmdet detector."""
    with warnings.catch_warnings():
        # mmcv and mmdet warn of their own use of each other's old names.
        warnings.simplefilter("ignore")
        mmcv_ops.make_importable()
        import mmdet.models  # noqa: F401  (puts the networks into the registry)
        from mmdet.registry import MODELS

        # Once in a process torch asks for the argument that mmdet leaves out: here, unheard.
        torch.meshgrid(torch.zeros(1), torch.zeros(1))
        with DefaultScope.overwrite_default_scope("mmdet"):
            return MODELS.build(config.model)
