"""PaddleOCR 3: the paper's engine, and with its networks the closest to published OCR rewards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reward_services.ocr.engine import CUDA_HINT, Line, detection_scale, identity_of
from reward_services.ocr.pixels import bgr, corners, enlarged, whole

# The values of PaddleOCR 2.9.1, with which flow_grpo computes its reward.
_DETECTION = {
    "text_det_thresh": 0.3,
    "text_det_box_thresh": 0.6,
    "text_det_unclip_ratio": 1.5,
}


_DISTRIBUTION = {"onnxruntime": "onnxruntime", "paddle": "paddlepaddle"}


class PaddleOcrEngine:
    """Images are read one at a time, the lines of an image one by one: no padding to a neighbour's
    width, so that a line's reading is its own. `threads` is the number that one network run uses.

    Models are given by PaddleOCR's names and, to need no download, by folders in PaddleOCR's layout
    (inference.yml beside inference.onnx or inference.json + inference.pdiparams).
    """

    def __init__(
        self,
        device: str,
        *,
        detect: bool,
        min_side: int,
        threads: int,
        runtime: str,
        detector: str,
        detector_dir: Path | None,
        recogniser: str,
        recogniser_dir: Path | None,
    ) -> None:
        # Or the import asks the model hosts whether they are there.
        os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
        self._min_side = min_side
        common = _runtime_arguments(runtime, device, threads)
        if detect:
            self._model = _pipeline(detector, detector_dir, recogniser, recogniser_dir, common)
        else:
            self._model = _recogniser(recogniser, recogniser_dir, common)
        self._read: Callable[[np.ndarray], list[Line]] = (
            self._read_image if detect else self._read_line
        )
        folders = [recogniser_dir, detector_dir] if detect else [recogniser_dir]
        names = f"{detector}+{recogniser}" if detect else recogniser
        # The runtime's own word: its distribution may be the GPU one, of another name.
        versions = {name: version(name) for name in ("paddleocr", "paddlex")}
        versions[runtime] = import_module(runtime).__version__
        weights = (
            path for folder in folders if folder for path in sorted(folder.glob("inference*"))
        )
        self.identity = f"{names} {identity_of(versions, weights)}"

    def read(self, images: Sequence[np.ndarray]) -> list[list[Line]]:
        return [self._read(image) for image in images]

    def _read_line(self, image: np.ndarray) -> list[Line]:
        """Recognition only: the whole image is one line."""
        (found,) = self._model.predict(bgr(image), batch_size=1)
        text = found["rec_text"].strip()
        return [Line(text, float(found["rec_score"]), whole(image))] if text else []

    def _read_image(self, image: np.ndarray) -> list[Line]:
        seen = bgr(enlarged(image, self._min_side))
        height, width = seen.shape[:2]
        scale = detection_scale(height, width, self._min_side)
        (found,) = self._model.predict(
            seen,
            text_det_limit_type="resize_long",
            text_det_limit_side_len=round(max(height, width) * scale),
        )
        lines = zip(found["rec_texts"], found["rec_scores"], found["rec_polys"], strict=True)
        return [
            Line(text.strip(), float(confidence), corners(box, seen, image))
            for text, confidence, box in lines
            if text.strip()
        ]


def _runtime_arguments(runtime: str, device: str, threads: int) -> dict[str, Any]:
    kind, _, index = device.partition(":")
    if find_spec(runtime) is None:
        raise ImportError(f"runtime={runtime}: pip install {_DISTRIBUTION[runtime]}")
    if runtime == "onnxruntime":
        import onnxruntime

        if kind == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this ONNX Runtime has no CUDA support: {CUDA_HINT}")
        engine, config = "onnxruntime", {"intra_op_num_threads": threads}
    else:
        engine, config = "paddle_static", {"cpu_threads": threads} if kind == "cpu" else {}
    paddle_device = f"gpu:{index or 0}" if kind == "cuda" else "cpu"
    return {"engine": engine, "engine_config": config, "device": paddle_device}


def _pipeline(
    detector: str,
    detector_dir: Path | None,
    recogniser: str,
    recogniser_dir: Path | None,
    common: dict[str, Any],
) -> Any:
    from paddleocr import PaddleOCR

    return PaddleOCR(
        text_detection_model_name=detector,
        text_detection_model_dir=_text(detector_dir),
        text_recognition_model_name=recogniser,
        text_recognition_model_dir=_text(recogniser_dir),
        text_recognition_batch_size=1,
        text_rec_score_thresh=0.0,  # the reward has its own min_confidence
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
        **_DETECTION,
        **common,
    )


def _recogniser(name: str, folder: Path | None, common: dict[str, Any]) -> Any:
    from paddleocr import TextRecognition

    return TextRecognition(model_name=name, model_dir=_text(folder), **common)


def _text(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)
