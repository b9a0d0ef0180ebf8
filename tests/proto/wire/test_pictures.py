"""What a person sees of a picture: odd modes, broken lazy images, and PNG files with much baggage."""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as pillow
from PIL import ImageCms, PngImagePlugin

from reward_api.errors import ItemFailure, Reason
from reward_api.wire import pictures
from reward_api.wire.images import decode_image, encode_images
from reward_api.wire.messages import Image
from reward_api.wire.pictures import read_picture

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
RED = pillow.new("RGB", (64, 64), "red")


def encoded(picture) -> Any:
    """Pixels [H, W, C], or the failure."""
    batch = encode_images([picture])
    if batch.failures:
        return batch.failures[0]
    assert batch.images is not None
    image = batch.images[0]
    assert image is not None
    return np.frombuffer(image.data, np.uint8).reshape(image.height or 0, image.width or 0, -1)


def png(image=RED, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


SEEN = {
    "floats in [0, 1]": pillow.fromarray(RAMP.astype(np.float32)),
    "floats in [0, 255]": pillow.fromarray((255 * RAMP).astype(np.float32)),
    "32-bit integers in 0..255": pillow.fromarray((255 * RAMP).astype(np.int32)),
    "32-bit integers of 16 bits": pillow.fromarray((65535 * RAMP).astype(np.int32)),
    "16-bit integers": pillow.fromarray((65535 * RAMP).astype(np.uint16)),
    "big-endian 16-bit integers": pillow.frombytes(
        "I;16B", (64, 64), (65535 * RAMP).astype(">u2").tobytes()
    ),
    "bytes": pillow.fromarray((255 * RAMP).astype(np.uint8)),
}


@pytest.mark.parametrize("name", SEEN)
def test_grey_of_every_depth_is_the_same_picture(name):
    assert np.abs(encoded(SEEN[name]) - 255 * RAMP[..., None]).max() <= 1.0


REFUSED = {
    "floats on another scale": (np.float32(RAMP * 2 - 1), Reason.INVALID_REQUEST),
    "large floats": (np.float32(RAMP * 1000), Reason.INVALID_REQUEST),
    "floats with NaN": (
        np.where(RAMP > 0.5, np.nan, 0).astype(np.float32),
        Reason.IMAGE_NON_FINITE,
    ),
    "floats with infinity": (
        np.where(RAMP > 0.5, np.inf, 0).astype(np.float32),
        Reason.IMAGE_NON_FINITE,
    ),
    "negative integers": ((RAMP * 255 - 10).astype(np.int32), Reason.INVALID_REQUEST),
    "large integers": ((RAMP * 70_000).astype(np.int32), Reason.INVALID_REQUEST),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_on_an_unknown_scale_are_that_items_failure(name):
    pixels, reason = REFUSED[name]
    failure = encoded(pillow.fromarray(pixels))
    assert isinstance(failure, ItemFailure)
    assert failure.reason == reason


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_every_mode_without_transparency(mode):
    assert encoded(RED.convert(mode)).shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparency_of_every_mode_is_laid_over_white(mode):
    clear = pillow.new("RGBA", (2, 2), (0, 0, 0, 0))
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    source = clear.convert(straight).convert(mode)
    assert encoded(source).min() == 255


def _closed():
    image = pillow.new("RGB", (4, 4))
    image.close()
    return image


def _lazy(data):
    return pillow.open(io.BytesIO(data))


NOISE = pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
BROKEN = {
    "cut off": lambda: _lazy(png(NOISE)[:-3000]),
    "closed": _closed,
    "of a file that is closed": lambda: _closed_file(),
    "empty": lambda: pillow.new("RGB", (0, 4)),
}


def _closed_file():
    file = io.BytesIO(png(NOISE))
    image = pillow.open(file)
    file.close()
    return image


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_costs_its_neighbours_nothing(name):
    batch = encode_images([NOISE, BROKEN[name](), NOISE])
    assert list(batch.failures) == [1]
    assert batch.failures[1].reason in (Reason.IMAGE_DECODE, Reason.IMAGE_SHAPE)
    assert batch.images is not None
    assert [image is not None for image in batch.images] == [True, False, True]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data, before=b"IDAT"):
    whole = png()
    at = whole.index(before) - 4
    return whole[:at] + chunk(kind, data) + whole[at:]


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _texts(compressed):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", '{"a": 1}' * 200_000, zip=compressed)
    info.add_itxt("prompt", "ä" * 2_000_000, zip=compressed)
    return info


BAGGAGE = {
    "a colour profile of 2 MB": png(icc_profile=PROFILE + bytes(2 << 20)),
    "large compressed texts": png(pnginfo=_texts(True)),
    "large texts": png(pnginfo=_texts(False)),
    "a text behind the pixels": with_chunk(
        b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)), b"IEND"
    ),
    "a text that is no text": with_chunk(b"zTXt", b"a\0\0not zlib"),
    "a profile that is none": with_chunk(b"iCCP", b"a\0\0not zlib"),
    "EXIF that is no TIFF": with_chunk(b"eXIf", b"\x00\x08\x00\x02\x01\x12\x00\x03"),
    "empty EXIF": with_chunk(b"eXIf", b""),
    "EXIF behind the pixels": with_chunk(b"eXIf", b"garbage", b"IEND"),
    "an orientation that does not exist": png(
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"
    ),
    "an unknown chunk": with_chunk(b"prVt", bytes(100)),
    "a resolution of one byte": with_chunk(b"pHYs", b"x"),
    "gamma": with_chunk(b"gAMA", struct.pack(">I", 45455)),
    "a damaged text": with_chunk(b"tEXt", b"a\0b").replace(b"a\0b", b"a\0c"),
    "EXIF of 2 MB": with_chunk(b"eXIf", b"II*\0" + b"\xff" * (2 << 20)),
    "a compressed text of 100 MB": with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20))),
}


@pytest.mark.parametrize("name", BAGGAGE)
def test_what_nobody_sees_does_not_refuse_a_whole_file(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, on garbage in EXIF
        pixels = decode_image(Image(data=BAGGAGE[name]))
    assert pixels.shape == (64, 64, 3)
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_shows_the_picture_upright(orientation):
    """The same turns as Pillow's own."""
    from PIL import ImageOps

    picture = pillow.fromarray(np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8))
    exif = pillow.Exif()
    exif[0x0112] = orientation
    data = png(picture, exif=exif)
    with _lazy(data) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    assert np.array_equal(decode_image(Image(data=data)), expected)


def test_more_chunks_than_any_encoder_makes_are_refused():
    whole = png()
    at = whole.index(b"IDAT") - 4
    flood = whole[:at] + chunk(b"prVt", b"") * 70_000 + whole[at:]
    with pytest.raises(ItemFailure, match="more than 16384 chunks"):
        decode_image(Image(data=flood))


def test_a_file_that_is_cut_off_is_still_refused():
    for data in (png(NOISE)[:-3000], png()[:20], with_chunk(b"tEXt", b"a\0b")[:-40]):
        with pytest.raises(ItemFailure, match="not a whole PNG file"):
            decode_image(Image(data=data))


def _damaged():
    """By name: a byte lost in the middle of the pixels, at their end, changed, and a palette's changed."""
    whole, stored = png(NOISE), png(NOISE, compress_level=0)
    end = whole.index(b"IEND")
    palette = png(NOISE.quantize(8))
    at = palette.index(b"PLTE") + 4
    return {
        "a byte less": whole[: end - 9] + whole[end - 4 :],
        "a byte less of red": (red := png())[: (at_red := red.index(b"IEND")) - 9]
        + red[at_red - 4 :],
        "a bit flipped": stored[:6000] + bytes([stored[6000] ^ 4]) + stored[6001:],
        "a row of zeros": whole[:6000] + bytes(200) + whole[6200:],
        "another palette": palette[:at] + bytes([palette[at] ^ 4]) + palette[at + 1 :],
    }


@pytest.mark.parametrize("name", _damaged())
def test_pixels_that_changed_on_the_way_are_refused(name):
    """Not shown as far as they can be read: half a picture has another score."""
    data = _damaged()[name]
    with pytest.raises(ItemFailure, match="not a whole PNG file"):
        decode_image(Image(data=data))
    if name != "another palette":  # which Pillow does not even open
        batch = encode_images([RED, _lazy(data)])
        assert batch.failures[1].reason is Reason.IMAGE_DECODE


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "CMYK", "L"])
def test_a_large_picture_is_read_piece_by_piece_as_in_one_go(monkeypatch, mode):
    side = np.arange(64)
    planes = np.broadcast_arrays(side[:, None] * 4, side * 4, side[:, None] ^ side, 200)
    picture = pillow.fromarray(np.stack(planes, -1).astype(np.uint8), "RGBA")
    picture = picture if mode in ("RGBA", "LA") else picture.convert("RGB")
    picture = picture.convert(mode)
    whole = read_picture(picture)
    # six bands of ten rows, and four rows more
    monkeypatch.setattr(pictures, "_BAND_PIXELS", 64 * 10)
    assert np.array_equal(read_picture(picture), whole)
