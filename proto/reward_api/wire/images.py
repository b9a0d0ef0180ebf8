"""Pictures to wire images (the client's side) and wire images to arrays (the service's side).

The client sends uint8 pixels as they are and rounds floats (pixels.py). The service reads PNG, JPEG
and WebP, recognised by their first bytes; the sides are checked before a pixel is decoded; only the
first frame counts. What a person sees of a picture is in pictures.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image as pillow

from reward_api.errors import InvalidRequest, ItemFailure, Reason
from reward_api.wire.messages import Image, PackedImages
from reward_api.wire.pictures import read_file, read_picture
from reward_api.wire.pixels import bad_batch, is_array, to_uint8

Encoding = Literal["raw", "png", "jpeg"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]


@dataclass(frozen=True)
class EncodedImages:
    """A batch ready for any number of rewards: `len()` pictures, some of which may have failed.

    ``pixels`` is the whole batch as uint8 [N, H, W, C] and ``images`` is None, or the other way
    round. The arrays may share memory with the caller's.
    """

    pixels: np.ndarray | None = None
    images: Sequence[Image | None] | None = None
    """None where the picture failed."""
    failures: dict[int, ItemFailure] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images or ()) if self.pixels is None else len(self.pixels)

    def num_bytes(self, index: int) -> int:
        if self.pixels is not None:
            return self.pixels[index].nbytes
        image = self.images[index] if self.images else None
        return len(image.data) if image else 0

    def select(self, indices: Sequence[int]) -> tuple[PackedImages | None, Sequence[Image | None]]:
        """The pictures of one call: in one tensor, without a copy when they are neighbours, or
        (None, one by one)."""
        if self.pixels is None:
            assert self.images is not None
            return None, [self.images[i] for i in indices]
        first, last = indices[0], indices[-1]
        run = last - first + 1 == len(indices)
        chosen = self.pixels[first : last + 1] if run else self.pixels[list(indices)]
        count, height, width, channels = chosen.shape
        packed = PackedImages(
            data=_flat(chosen), count=count, height=height, width=width, channels=channels
        )
        return packed, [None] * count


def encode_images(
    images: Any,
    *,
    encoding: Encoding = "raw",
    quality: int = 75,
    subsampling: Subsampling = "4:2:0",
) -> EncodedImages:
    """Turns a batch of pictures into wire images, once for all rewards.

    ``images`` is a 4-D tensor or array (NCHW or NHWC; 1 or 3 channels; float in [0, 1] or uint8),
    or a sequence of 3-D or 2-D ones, PIL images, and encoded files as bytes; sizes may differ.
    Tensors are recognised by their methods, so torch is not needed here. Where a shape can be read
    both ways (3 x H x 3), a tensor counts as channels-first and an array as channels-last.

    ``encoding="jpeg"`` with its defaults gives the bytes that flow_grpo's remote rewards see
    (quality 75, 4:2:0); it is lossy, and meant for reproducing published curves. Files given as
    bytes are sent unchanged whatever the encoding.

    Raises InvalidRequest when the batch as a whole cannot be read (wrong type, dtype or rank).
    """
    batch = _to_batch(images)
    if encoding == "raw":
        return batch
    return compress(batch, encoding=encoding, quality=quality, subsampling=subsampling)


def compress(
    batch: EncodedImages, *, encoding: Encoding, quality: int, subsampling: Subsampling
) -> EncodedImages:
    """The raw pictures of a batch as PNG or JPEG files. Slow (see proto/README.md)."""
    if encoding not in ("png", "jpeg"):
        raise ValueError(f'encoding={encoding!r}: choose "raw", "png" or "jpeg"')
    options = (
        {"format": "PNG", "compress_level": 1}
        if encoding == "png"
        else {"format": "JPEG", "quality": quality, "subsampling": subsampling}
    )
    files: list[Image | None] = []
    for i in range(len(batch)):
        image = batch.images[i] if batch.images is not None else None
        if i in batch.failures or (image is not None and not image.is_raw):
            files.append(image)
            continue
        pixels = batch.pixels[i] if batch.pixels is not None else _raw_pixels(image)
        file = io.BytesIO()
        pillow.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
            file, **options
        )
        files.append(Image(data=file.getvalue()))
    return EncodedImages(images=files, failures=batch.failures)


@dataclass(frozen=True)
class ImageLimits:
    """What a service decodes at most; the names are those of its settings."""

    max_image_pixels: int = 16_777_216
    max_image_side: int = 8192
    max_image_bytes: int = 32 * 2**20


def decode_image(
    image: Image,
    limits: ImageLimits | None = None,
    hold: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """The pixels of one wire image: uint8 RGB [H, W, 3], C-contiguous and read-only.

    ``hold`` is told how many bytes a file will take, before it is decoded; it may refuse by a RewardError.

    Raises ItemFailure: IMAGE_TOO_LARGE by bytes or by sides (before decoding), IMAGE_SHAPE when raw
    bytes do not fill height x width x channels, IMAGE_DECODE for anything that is not a whole PNG,
    JPEG or WebP file.
    """
    limits = limits or ImageLimits()
    check_bytes(len(image.data), limits)
    if not image.is_raw:
        pixels = _decode_file(image.data, limits, hold)
    else:
        check_sides(image.width or 0, image.height or 0, limits)
        pixels = _raw_pixels(image)
        if pixels.shape[-1] == 1:
            pixels = np.repeat(pixels, 3, axis=-1)
    pixels.flags.writeable = False
    return pixels


def unpack(packed: PackedImages) -> list[Image]:
    """The images of a packed batch, as slices of its buffer.

    Raises InvalidRequest (IMAGE_SHAPE) when the bytes do not fill the stated shape.
    """
    size = packed.height * packed.width * packed.channels
    if len(packed.data) != packed.count * size:
        shape = (packed.count, packed.height, packed.width, packed.channels)
        raise InvalidRequest(
            Reason.IMAGE_SHAPE,
            f"packed_images has {len(packed.data)} bytes, its shape {shape} needs "
            f"{packed.count * size}",
        )
    view = memoryview(packed.data)
    return [
        Image(
            data=view[i * size : (i + 1) * size],
            height=packed.height,
            width=packed.width,
            channels=packed.channels,
        )
        for i in range(packed.count)
    ]


def _raw_pixels(image: Image | None) -> np.ndarray:
    assert image is not None
    shape = (image.height or 0, image.width or 0, image.channels)
    if image.channels not in (1, 3):
        raise ItemFailure(
            Reason.IMAGE_SHAPE, f"raw images have 1 or 3 channels, not {image.channels}"
        )
    size = shape[0] * shape[1] * shape[2]
    if len(image.data) != size:
        raise ItemFailure(
            Reason.IMAGE_SHAPE, f"{len(image.data)} bytes; the shape {shape} needs {size}"
        )
    return np.frombuffer(image.data, np.uint8).reshape(shape)


def _decode_file(
    data: bytes | memoryview, limits: ImageLimits, hold: Callable[[int], None]
) -> np.ndarray:
    name = _sniff(bytes(data[:16]))
    if name is None:
        raise ItemFailure(
            Reason.IMAGE_DECODE, "neither PNG, JPEG nor WebP (judged by its first bytes)"
        )

    def check(width: int, height: int) -> None:
        check_sides(width, height, limits)
        hold(width * height * 3)

    return read_file(data, name, check)


def _sniff(head: bytes) -> str | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def check_bytes(count: int, limits: ImageLimits) -> None:
    """Raises ItemFailure (IMAGE_TOO_LARGE)."""
    if count > limits.max_image_bytes:
        raise ItemFailure(
            Reason.IMAGE_TOO_LARGE, f"{count} bytes; max_image_bytes is {limits.max_image_bytes}"
        )


def check_sides(width: int, height: int, limits: ImageLimits) -> None:
    """Raises ItemFailure (IMAGE_TOO_LARGE)."""
    if max(width, height) > limits.max_image_side:
        raise ItemFailure(
            Reason.IMAGE_TOO_LARGE,
            f"{width}x{height}; max_image_side is {limits.max_image_side}",
        )
    if width * height > limits.max_image_pixels:
        raise ItemFailure(
            Reason.IMAGE_TOO_LARGE,
            f"{width}x{height}; max_image_pixels is {limits.max_image_pixels}",
        )


def _to_batch(images: Any) -> EncodedImages:
    if isinstance(images, (str, bytes, memoryview, pillow.Image, Image, dict)):
        raise bad_batch(f"a single {type(images).__name__}; put it into a list")
    if is_array(images):
        if images.ndim != 4:
            raise bad_batch(f"an array of shape {tuple(images.shape)}; expected 4 dimensions")
        pixels, failures = to_uint8(images)
        return EncodedImages(pixels=pixels, failures=failures)
    if not isinstance(images, Iterable):
        raise bad_batch(f"a {type(images).__name__}")
    entries: list[Image | None] = []
    failures = {}
    for i, entry in enumerate(images):
        image = _to_image(entry)
        if isinstance(image, ItemFailure):
            failures[i] = image
        entries.append(image if isinstance(image, Image) else None)
    return EncodedImages(images=entries, failures=failures)


def _to_image(entry: Any) -> Image | ItemFailure:
    if isinstance(entry, Image):
        return entry
    if isinstance(entry, (bytes, bytearray, memoryview)):
        return Image(data=memoryview(entry).cast("B"))
    if isinstance(entry, pillow.Image):
        try:
            entry = read_picture(entry)
        except ItemFailure as failure:
            return failure
    if not is_array(entry):
        raise bad_batch(f"a {type(entry).__name__} in the sequence")
    if entry.ndim not in (2, 3):
        raise bad_batch(f"an image of shape {tuple(entry.shape)}; expected 2 or 3 dimensions")
    pixels, failures = to_uint8(entry[None] if entry.ndim == 3 else entry[None, :, :, None])
    if failures:
        return failures[0]
    _, height, width, channels = pixels.shape
    return Image(data=_flat(pixels), height=height, width=width, channels=channels)


def _flat(pixels: np.ndarray) -> memoryview:
    return np.ascontiguousarray(pixels).reshape(-1).data
