"""A PIL image or an image file as the RGB pixels that a person sees.

EXIF orientation is applied and transparency is laid over white; 16-bit samples keep their high byte;
colour profiles are ignored, and so are texts, profiles and EXIF blocks that cannot be read.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image as pillow

from reward_api.errors import ItemFailure, Reason, RewardError
from reward_api.wire.pixels import to_uint8

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: pillow.Transpose.FLIP_LEFT_RIGHT,
    3: pillow.Transpose.ROTATE_180,
    4: pillow.Transpose.FLIP_TOP_BOTTOM,
    5: pillow.Transpose.TRANSPOSE,
    6: pillow.Transpose.ROTATE_270,
    7: pillow.Transpose.TRANSVERSE,
    8: pillow.Transpose.ROTATE_90,
}

# The ancillary chunks of a PNG file that change what a person sees here: transparency, orientation,
# animation. Pillow refuses others when they are large or odd, and without them a file has the same pixels:
# https://www.w3.org/TR/png-3/#11Ancillary-chunks
_SEEN_CHUNKS = frozenset({b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"})
_MAX_CHUNKS = 16_384
# Larger pictures are converted piece by piece: some steps of Pillow's hold the interpreter for as long as
# they take, and a service answers for its health meanwhile. It also bounds the memory of copies.
_BAND_PIXELS = 2**20
_PNG_HEAD = 8


def read_file(
    data: bytes | memoryview, name: str, check_sides: Callable[[int, int], None]
) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a file of the format `name` ("PNG", "JPEG", "WEBP").

    ``check_sides(width, height)`` is asked before a pixel is decoded. Raises ItemFailure:
    IMAGE_DECODE, and what `check_sides` raises.
    """
    try:
        seen = _without_unseen_chunks(memoryview(data)) if name == "PNG" else data
        with pillow.open(io.BytesIO(seen), formats=[name]) as file:
            check_sides(*file.size)
            return np.ascontiguousarray(_to_rgb(file))
    except RewardError:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ItemFailure(Reason.IMAGE_TOO_LARGE, str(error)) from None
    except Exception as error:  # whatever a decoder raises on hostile bytes
        raise ItemFailure(Reason.IMAGE_DECODE, f"not a whole {name} file: {error}") from None


def read_picture(image: pillow.Image) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a PIL image of any mode.

    Float pixels (mode F) are in [0, 1] or, where one lies above 2, in [0, 255]; 32-bit integers
    (mode I) in 0..255 or, where one lies above, 16-bit samples.

    Raises ItemFailure: IMAGE_DECODE for a picture that cannot be read (cut off, closed, of a mode
    that has no RGB), IMAGE_NON_FINITE, IMAGE_TOO_LARGE, INVALID_REQUEST for another scale.
    """
    if 0 in image.size:
        raise ItemFailure(Reason.IMAGE_SHAPE, f"the picture has the size {image.size}")
    try:
        return _to_rgb(image)
    except ItemFailure:
        raise
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise ItemFailure(Reason.IMAGE_TOO_LARGE, str(error)) from None
    except Exception as error:  # whatever a lazy file, a closed one or an odd mode raises
        raise ItemFailure(
            Reason.IMAGE_DECODE, f"the PIL image cannot be read: {type(error).__name__}: {error}"
        ) from None


def _to_rgb(image: pillow.Image) -> np.ndarray:
    # Here, because reading a PNG's EXIF loads its pixels too, and what a load that failed has left behind
    # passes for a whole picture the second time.
    image.load()
    turn = _TURNS.get(_orientation(image))
    # The format says that 32-bit integers are 16-bit samples; a turned copy has none.
    has_deep_grey = image.mode.startswith("I;") or (image.mode == "I" and image.format == "PNG")
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        return _grey(_float_grey(np.asarray(image)))
    if image.mode == "I" or has_deep_grey:
        return _grey(_integer_grey(np.asarray(image), is_16_bit=has_deep_grey))
    width, height = image.size
    if width * height <= _BAND_PIXELS:
        return _flattened(image)
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = _flattened(image.crop((0, top, width, bottom)))
    return pixels


def _flattened(image: pillow.Image) -> np.ndarray:
    """Of a mode with 8 bits a sample."""
    if image.mode == "La":  # premultiplied: straight alpha first
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: pillow.Image) -> int:
    """1, upright, where EXIF cannot be read."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # whatever a parser raises on a block that is no TIFF
        return 1


def _float_grey(pixels: np.ndarray) -> np.ndarray:
    low, high = pixels.min(), pixels.max()
    if low >= -1 and 2 < high <= 256:
        pixels = pixels / np.float32(255)
    grey, failures = to_uint8(pixels[None, ..., None])
    if failures:
        raise failures[0]
    return grey[0, ..., 0]


def _integer_grey(pixels: np.ndarray, *, is_16_bit: bool) -> np.ndarray:
    if pixels.dtype == np.uint16 and is_16_bit:
        return (pixels >> 8).astype(np.uint8)
    pixels = pixels.astype(np.int64)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 0xFFFF:
        raise ItemFailure(
            Reason.INVALID_REQUEST,
            f"integer pixels span [{low}, {high}]; they must be in 0..255, or 16-bit samples in "
            "0..65535 (rescale them, or send uint8)",
        )
    return (pixels >> 8 if is_16_bit or high > 255 else pixels).astype(np.uint8)


def _grey(pixels: np.ndarray) -> np.ndarray:
    spread = np.empty((*pixels.shape, 3), np.uint8)
    spread[...] = pixels[..., None]  # unlike np.repeat, lets other threads run meanwhile
    return spread


def _without_unseen_chunks(view: memoryview) -> bytes | memoryview:
    """The PNG file less its texts, colour profile and the like; `view` itself where it has none, or is
    cut off. Raises ItemFailure for more chunks than any encoder makes."""
    kept: list[memoryview] = []
    start = position = _PNG_HEAD
    for _ in range(_MAX_CHUNKS):
        if position + 12 > len(view):
            break
        size = int.from_bytes(view[position : position + 4], "big")
        kind = bytes(view[position + 4 : position + 8])
        end = position + 12 + size
        is_seen = kind[:1].isupper() or kind in _SEEN_CHUNKS
        if not is_seen and end <= len(view):
            kept.append(view[start:position])
            start = end
        position = end
        if kind == b"IEND":
            break
    else:
        raise ItemFailure(Reason.IMAGE_DECODE, f"the PNG file has more than {_MAX_CHUNKS} chunks")
    return b"".join([view[:_PNG_HEAD], *kept, view[start:]]) if kept else view
