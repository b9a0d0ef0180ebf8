"""What both engines do to an image before they read it."""

from __future__ import annotations

import cv2
import numpy as np

from reward_services.ocr.engine import Point, detection_scale


def bgr(rgb: np.ndarray) -> np.ndarray:
    """The channel order that PP-OCR was trained on (OpenCV's), contiguous."""
    return np.ascontiguousarray(rgb[:, :, ::-1])


def enlarged(image: np.ndarray, min_side: int) -> np.ndarray:
    """A small image at the size at which its text is detected; a larger one as it is.

    It comes before everything else, because the engines tell lines apart, and drop specks, by
    fixed numbers of pixels.
    """
    height, width = image.shape[:2]
    scale = detection_scale(height, width, min_side)
    if scale <= 1:
        return image
    size = (round(width * scale), round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def corners(box: np.ndarray, seen: np.ndarray, image: np.ndarray) -> tuple[Point, ...]:
    """`box`, points (4, 2) in pixels of `seen`, in pixels of `image`."""
    factor_x = image.shape[1] / seen.shape[1]
    factor_y = image.shape[0] / seen.shape[0]
    return tuple((float(x) * factor_x, float(y) * factor_y) for x, y in box)


def whole(image: np.ndarray) -> tuple[Point, ...]:
    """The image's own corners: the box of a line that was not detected but given."""
    height, width = image.shape[:2]
    return ((0.0, 0.0), (float(width), 0.0), (float(width), float(height)), (0.0, float(height)))
