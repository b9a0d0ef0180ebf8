import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as pillow

from reward_api.errors import InvalidRequest, ItemFailure, Reason
from reward_api.wire.images import EncodedImages, ImageLimits, decode_image, encode_images, unpack
from reward_api.wire.messages import Image, PackedImages

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 5, 4, 3), np.uint8)


def chosen_images(encoded: EncodedImages, *indices: int) -> list[Image]:
    """What is sent for these pictures, one by one."""
    packed, images = encoded.select(indices)
    return unpack(packed) if packed else [image for image in images if image is not None]


def decoded(batch) -> list[np.ndarray]:
    encoded = batch if isinstance(batch, EncodedImages) else encode_images(batch)
    return [decode_image(image) for image in chosen_images(encoded, *range(len(encoded)))]


def file(image: pillow.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def failure(image: Image, limits: ImageLimits | None = None) -> Reason:
    with pytest.raises(ItemFailure) as caught:
        decode_image(image, limits)
    return caught.value.reason


# The client's side.

FORMS = {
    "uint8 NHWC array": PIXELS,
    "uint8 NCHW array": PIXELS.transpose(0, 3, 1, 2),
    "uint8 NCHW tensor": torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
    "uint8 NHWC tensor": torch.from_numpy(PIXELS),
    "float32 NCHW tensor": torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255,
    "float32 with gradient": (torch.from_numpy(PIXELS) / 255).requires_grad_(),
    "float64 array": PIXELS / 255,
    "float16 tensor": (torch.from_numpy(PIXELS) / 255).half(),
    "float16 array": (PIXELS / 255).astype(np.float16),
    "list of arrays": list(PIXELS),
    "list of tensors": list(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)),
    "list of PIL images": [pillow.fromarray(image) for image in PIXELS],
    "list of PNG bytes": [file(pillow.fromarray(image)) for image in PIXELS],
    "list of wire images": [Image(data=image.tobytes(), height=5, width=4) for image in PIXELS],
    "iterator": iter(list(PIXELS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form):
    assert np.array_equal(decoded(FORMS[form]), PIXELS)


@given(st.lists(st.floats(-0.5, 2.0, width=32), min_size=12, max_size=12))
def test_floats_are_rounded_half_to_even_and_clamped(values):
    floats = np.array(values, np.float32).reshape(1, 2, 2, 3)
    expected = np.array(
        [min(max(round(float(np.float32(v) * np.float32(255))), 0), 255) for v in values]
    )
    for batch in (floats, torch.from_numpy(floats)):
        assert np.array_equal(decoded(batch)[0].reshape(-1), expected)


def test_halves_go_to_even():
    halves = np.array([0.5, 1.5, 2.5], np.float64).reshape(1, 1, 1, 3) / 255
    assert (halves * 255 == [0.5, 1.5, 2.5]).all()
    assert decoded(halves)[0].tolist() == [[[0, 2, 2]]]
    tensor = torch.from_numpy(halves).permute(0, 3, 1, 2)
    assert decoded(tensor)[0].tolist() == [[[0, 2, 2]]]


def test_packed_batches_share_memory_with_the_caller():
    packed, _ = encode_images(PIXELS).select([0, 1])
    assert packed is not None
    assert np.shares_memory(np.frombuffer(packed.data, np.uint8), PIXELS)


def test_a_selection_with_gaps_keeps_order():
    batch = np.arange(4 * 3, dtype=np.uint8).reshape(4, 1, 1, 3)
    packed, _ = encode_images(batch).select([0, 2, 3])
    assert packed is not None
    assert bytes(packed.data) == batch[[0, 2, 3]].tobytes()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.nan, Reason.IMAGE_NON_FINITE),
        (-np.inf, Reason.IMAGE_NON_FINITE),
        (255.0, Reason.INVALID_REQUEST),
        (-1.0, Reason.INVALID_REQUEST),
    ],
)
def test_a_bad_float_image_fails_alone(bad, reason, as_tensor):
    batch = np.full((3, 3, 4, 4), 0.25, np.float32)
    batch[1, 2, 3, 0] = bad
    for form in (batch, list(batch)):
        form = torch.from_numpy(batch) if as_tensor and form is batch else form
        encoded = encode_images(form)
        assert {i: f.reason for i, f in encoded.failures.items()} == {1: reason}
        assert [decode_image(i).max() for i in chosen_images(encoded, 0, 2)] == [64, 64]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (PIXELS[0], "4 dimensions"),
        (pillow.new("RGB", (2, 2)), "put it into a list"),
        (b"bytes", "put it into a list"),
        (PIXELS.astype(np.int64), "int64"),
        (torch.ones(1, 3, 4, 4, dtype=torch.bool), "torch.bool"),
        (np.zeros((1, 4, 4, 4), np.uint8), "1 or 3 channels"),
        (np.zeros((1, 0, 4, 3), np.uint8), "empty images"),
        (["path.png"], "a str in the sequence"),
        (5, "got a int"),
        ([np.zeros(3, np.uint8)], "2 or 3 dimensions"),
    ],
)
def test_unreadable_batches_are_refused(batch, message):
    with pytest.raises(InvalidRequest, match=message):
        encode_images(batch)


def test_ambiguous_shapes_follow_the_library_they_come_from():
    cube = RNG.integers(0, 256, (1, 3, 3, 3), np.uint8)
    assert np.array_equal(decoded(cube)[0], cube[0])
    assert np.array_equal(decoded(torch.from_numpy(cube))[0], cube[0].transpose(1, 2, 0))


def test_grey_becomes_rgb():
    grey = RNG.integers(0, 256, (4, 5), np.uint8)
    for batch in ([grey], grey[None, :, :, None], [pillow.fromarray(grey)]):
        assert np.array_equal(decoded(batch)[0], np.repeat(grey[..., None], 3, -1))


def test_png_is_lossless_and_bytes_pass_unchanged():
    given_file = file(pillow.fromarray(PIXELS[1]), "JPEG")
    encoded = encode_images([PIXELS[0], given_file, PIXELS[0][..., 0]], encoding="png")
    assert bytes(chosen_images(encoded, 1)[0].data) == given_file
    assert np.array_equal(decoded(encoded)[0], PIXELS[0])
    packed = encode_images(PIXELS, encoding="png")
    assert np.array_equal(decoded(packed), PIXELS)


def test_jpeg_defaults_are_those_of_flow_grpo():
    # What its remote client does: PIL's own defaults.
    expected = file(pillow.fromarray(PIXELS[0]), "JPEG")
    assert chosen_images(encode_images(PIXELS, encoding="jpeg"), 0)[0].data == expected
    finer = encode_images(PIXELS, encoding="jpeg", quality=95, subsampling="4:4:4")
    assert len(chosen_images(finer, 0)[0].data) > len(expected)


def test_a_failed_image_stays_failed_when_compressed():
    batch = np.zeros((2, 4, 4, 3), np.float32)
    batch[0] = np.nan
    encoded = encode_images(batch, encoding="png")
    assert list(encoded.failures) == [0]
    assert chosen_images(encoded, 1)[0].data.startswith(b"\x89PNG")


def test_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="choose"):
        encode_images(PIXELS, encoding="gif")  # pyright: ignore[reportArgumentType]


# The service's side.


MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "JPEG": ["1", "L", "RGB", "CMYK"],
    "WEBP": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
}


@pytest.mark.parametrize(
    ("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes]
)
def test_files_of_every_mode_decode_to_rgb(mode, format):
    # A colour of the palette that convert("P") makes.
    source = pillow.new("RGB", (16, 8), (204, 51, 102)).convert(mode)
    data = file(source, format)
    pixels = decode_image(Image(data=data))
    assert pixels.shape == (8, 16, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert not pixels.flags.writeable
    if mode not in ("1", "L", "LA"):
        assert np.allclose(pixels.astype(int), (204, 51, 102), atol=8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = pillow.new("RGBA", (2, 1), (0, 0, 0, 255)).convert(mode)
    image.putpixel((0, 0), (0,) * (len(mode) - 1) + (0,))
    assert decode_image(Image(data=file(image))).tolist() == [[[255] * 3, [0] * 3]]


def test_palette_transparency_is_laid_over_white():
    image = pillow.new("P", (2, 1))
    image.putpalette([9, 9, 9, 7, 7, 7])
    image.putpixel((1, 0), 1)
    data = file(image, transparency=0)
    assert decode_image(Image(data=data)).tolist() == [[[255] * 3, [7] * 3]]


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = np.array([[0, 0x1234, 0xFFFF]], np.uint16)
    pixels = decode_image(Image(data=file(pillow.fromarray(grey))))
    assert pixels[..., 0].tolist() == [[0, 0x12, 0xFF]]


def test_exif_orientation_is_applied():
    image = pillow.new("RGB", (2, 1), "red")
    image.putpixel((0, 0), (0, 0, 255))
    exif = pillow.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    pixels = decode_image(Image(data=file(image, exif=exif)))
    assert pixels.tolist() == [[[0, 0, 255]], [[255, 0, 0]]]


JPEG = file(pillow.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
PNG = file(pillow.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)))
WEBP = file(pillow.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "WEBP")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        file(pillow.new("P", (4, 4)), "GIF"),
        file(pillow.new("RGB", (4, 4)), "BMP"),
        JPEG[: len(JPEG) // 2],
        PNG[: len(PNG) // 2],
        WEBP[: len(WEBP) // 2],
        PNG[:8],
        JPEG[:3],
        b"RIFF\x00\x00\x00\x00WEBP",
    ],
    ids=range(11),
)
def test_anything_but_a_whole_file_fails_to_decode(data):
    assert failure(Image(data=data)) is Reason.IMAGE_DECODE


@given(st.sampled_from([JPEG, PNG, WEBP]), st.data())
def test_damaged_files_decode_or_fail(data, draw):
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        broken[draw.draw(st.integers(0, len(broken) - 1))] ^= draw.draw(st.integers(1, 255))
    pixels = reason = None
    try:
        pixels = decode_image(Image(data=bytes(broken)), ImageLimits(max_image_pixels=65536))
    except ItemFailure as error:
        reason = error.reason
    assert pixels is not None or reason in (Reason.IMAGE_DECODE, Reason.IMAGE_TOO_LARGE)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\x00" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(9000, 9000), (8193, 1), (8192, 8192), (60_000, 60_000), (11_000, 11_000)]
)
def test_sides_are_checked_before_decoding(width, height):
    # The file holds no such pixels: decoding it first would say IMAGE_DECODE.
    assert failure(Image(data=png_claiming(width, height))) is Reason.IMAGE_TOO_LARGE


def test_limits_are_those_given():
    limits = ImageLimits(max_image_pixels=100, max_image_side=20, max_image_bytes=250)
    assert decode_image(Image(data=bytes(240), height=20, width=4), limits).shape == (20, 4, 3)
    assert failure(Image(data=bytes(63), height=21, width=1), limits) is Reason.IMAGE_TOO_LARGE
    assert failure(Image(data=bytes(220), height=20, width=11, channels=1), limits) is (
        Reason.IMAGE_TOO_LARGE
    )
    assert failure(Image(data=bytes(251)), limits) is Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    ("length", "channels"), [(11, 3), (13, 3), (0, 3), (16, 4), (8, 2), (0, 0), (4, -1)]
)
def test_raw_bytes_must_fill_their_shape(length, channels):
    image = Image(data=bytes(length), height=2, width=2, channels=channels)
    assert failure(image) is Reason.IMAGE_SHAPE


def test_packed_bytes_must_fill_their_shape():
    with pytest.raises(InvalidRequest) as caught:
        unpack(PackedImages(data=bytes(11), count=1, height=2, width=2))
    assert caught.value.reason is Reason.IMAGE_SHAPE


def test_one_pixel_and_long_images_decode():
    assert decode_image(Image(data=file(pillow.new("RGB", (1, 1))))).shape == (1, 1, 3)
    assert decode_image(Image(data=file(pillow.new("RGB", (8192, 8))))).shape == (8, 8192, 3)


def test_base64_with_line_breaks_says_how_to_leave_them_out():
    for broken in ("YWJj\nYWJj", "YWJj\r\nYWJj"):
        with pytest.raises(ValueError, match="`base64 -w0` leaves out"):
            Image(data=broken)  # pyright: ignore
