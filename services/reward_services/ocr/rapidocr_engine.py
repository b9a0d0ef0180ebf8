"""PP-OCR networks through RapidOCR on ONNX Runtime: offline, the weights are in the wheel.

RapidOCR's own pipeline recognises the lines of an image in padded batches, drops very flat images
without a word and upscales small ones to 736 pixels. So its networks, pre- and post-processing are
used here, and the few steps between them are ours.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import rapidocr
from rapidocr import RapidOCR
from rapidocr.ch_ppocr_det.utils import DetPreProcess
from rapidocr.utils.process_img import get_rotate_crop_image

from reward_services.ocr.engine import CUDA_HINT, Line, detection_scale, identity_of
from reward_services.ocr.pixels import bgr, corners, enlarged, whole
from reward_services.ocr.reading_order import reading_order

_NETWORK_STEP = 32  # the detector halves its input five times
_RECOGNISER_HEIGHT = 48
_MIN_WIDTH, _MAX_WIDTH, _WIDTH_STEP = 96, 3200, 32


class RapidOcrEngine:
    """Thread-safe: each image is read by one of `threads` threads, each network run by one.

    Every line is recognised in a run of its own: on a CPU a batch of lines is no faster (a wide one
    is slower), and the last digits of a result would depend on the batch.
    """

    def __init__(self, device: str, *, detect: bool, min_side: int, threads: int) -> None:
        self._min_side = min_side
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ocr")
        cv2.setNumThreads(1)
        networks = RapidOCR(params=_parameters(device))
        blank = np.full((64, 64, 3), 127, np.uint8)
        networks(blank, use_det=False)  # the networks are loaded by their first use
        if detect:
            networks(blank, use_det=True)
        self._detector: Any = networks.text_det
        self._recogniser: Any = networks.text_rec
        self._read: Callable[[np.ndarray], list[Line]] = (
            self._read_image if detect else self._read_line
        )
        models = Path(inspect.getfile(rapidocr)).parent / "models"
        used = ("*_rec_*.onnx", "*_det_*.onnx") if detect else ("*_rec_*.onnx",)
        self.identity = identity_of(
            {
                "rapidocr": version("rapidocr"),
                "onnxruntime": onnxruntime.__version__,
                "order": "rows-1",
            },
            sorted(path for pattern in used for path in models.glob(pattern)),
        )

    def read(self, images: Sequence[np.ndarray]) -> list[list[Line]]:
        return list(self._pool.map(self._read, images))

    def _read_line(self, image: np.ndarray) -> list[Line]:
        """Recognition only: the whole image is one line."""
        text, confidence = self._recognise(bgr(image))
        return [Line(text, confidence, whole(image))] if text else []

    def _read_image(self, image: np.ndarray) -> list[Line]:
        seen = bgr(enlarged(image, self._min_side))
        lines = []
        for box in self._detect(seen):
            # A copy: the cropping shifts the corners that it is given.
            text, confidence = self._recognise(get_rotate_crop_image(seen, box.copy()))
            if text:
                lines.append(Line(text, confidence, corners(box, seen, image)))
        return lines

    def _detect(self, seen: np.ndarray) -> np.ndarray:
        """Boxes (n, 4, 2) float32 in pixels of `seen`, in reading order."""
        height, width = seen.shape[:2]
        scale = detection_scale(height, width, self._min_side)
        resized = cv2.resize(seen, (_network_side(width * scale), _network_side(height * scale)))
        detector = self._detector
        prepare = DetPreProcess(mean=detector.mean, std=detector.std)
        pixels = prepare.permute(prepare.normalize(resized))
        heat = detector.session(pixels[np.newaxis].astype(np.float32))
        boxes, _ = detector.postprocess_op(heat, (height, width))
        if not len(boxes):
            return np.empty((0, 4, 2), np.float32)
        boxes = np.asarray(boxes, np.float32)
        return boxes[reading_order(boxes)]

    def _recognise(self, crop: np.ndarray) -> tuple[str, float]:
        height, width = crop.shape[:2]
        ratio = recogniser_width(height, width) / _RECOGNISER_HEIGHT
        pixels = self._recogniser.resize_norm_img(crop, ratio)
        probabilities = self._recogniser.session(pixels[np.newaxis])
        lines, _ = self._recogniser.postprocess_op(probabilities)
        text, confidence = lines[0]
        return text.strip(), float(confidence)


def recogniser_width(height: int, width: int) -> int:
    """Columns of the recogniser's input for a crop: its own width at 48 rows, rounded up in steps,
    so that there are few shapes for the runtime to prepare. Wider lines are squeezed."""
    own = math.ceil(_RECOGNISER_HEIGHT * width / height)
    return min(max(_MIN_WIDTH, math.ceil(own / _WIDTH_STEP) * _WIDTH_STEP), _MAX_WIDTH)


def _network_side(pixels: float) -> int:
    return max(_NETWORK_STEP, round(pixels / _NETWORK_STEP) * _NETWORK_STEP)


def _parameters(device: str) -> dict[str, object]:
    parameters: dict[str, object] = {
        "Global.log_level": "error",
        "Global.use_cls": False,  # upside-down text: flow_grpo does not look for it either
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    kind, _, index = device.partition(":")
    if kind == "cuda":
        # RapidOCR itself would go on with the CPU.
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this ONNX Runtime has no CUDA support: {CUDA_HINT}")
        parameters["EngineConfig.onnxruntime.use_cuda"] = True
        parameters["EngineConfig.onnxruntime.cuda_ep_cfg.device_id"] = int(index or 0)
    return parameters
