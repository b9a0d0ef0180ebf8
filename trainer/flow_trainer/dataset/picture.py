"""An image file as a model of one size takes it: what a person sees, resized to cover and cropped in
the middle."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from reward_api import ItemFailure
from reward_api.wire.pictures import read_picture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MOST_PIXELS = 200_000_000
"""Of a file that is still decoded: 600 MB."""


class Unusable(Exception):
    """Why an image cannot be used, in a line."""


@dataclass(frozen=True, slots=True)
class Picture:
    pixels: np.ndarray
    """(height, width, 3) uint8, C-contiguous."""
    size: tuple[int, int]
    """Width and height before the crop, upright."""


def read_cropped(data: bytes, width: int, height: int, *, upscale: bool = False) -> Picture:
    """The file's image in exactly this size. Raises Unusable: no image, or smaller than that and
    `upscale` not set."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise Unusable(f"too large: {file.width} x {file.height} pixels")
            whole = Image.fromarray(read_picture(file))
    except UnidentifiedImageError:
        raise Unusable(f"unreadable: not a {', '.join(FORMATS)} file") from None
    except ItemFailure as failure:
        raise Unusable(f"unreadable: {failure.message}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unusable(f"unreadable: {error}") from None
    if not upscale and (whole.width < width or whole.height < height):
        raise Unusable(f"too small: {whole.width} x {whole.height} pixels")
    fitted = ImageOps.fit(whole, (width, height), Image.Resampling.LANCZOS)
    return Picture(np.array(fitted), whole.size)
