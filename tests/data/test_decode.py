"""Image bytes of every odd and broken kind: the picture Pillow shows, or CorruptImage with a reason."""

import io
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from shards import image_bytes

from distgan.data.decode import DecodeOptions, decode, decode_into
from distgan.data.image_format import CorruptImage
from distgan.data.resize import fit
from distgan.image_spec import square

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 56, 3)).astype(np.uint8)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3)).astype(np.uint8)).resize((56, 40), Image.BICUBIC))
GREY = NOISE[..., 0]


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def png(header: tuple[int, int, int, int], chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of any width, height, bit depth and colour type, with chunks of our own."""
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks, (b"IEND", b"")]:
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


# JPEG.


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [40, 90, 100])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("pixels", [NOISE, SMOOTH, NOISE[:33, :17], GREY], ids=["noise", "smooth", "odd size", "grey"])
def test_jpeg_is_bit_identical_to_pillow(pixels: np.ndarray, subsampling: int, quality: int, progressive: bool) -> None:
    options = {"subsampling": subsampling} if pixels.ndim == 3 else {}
    data = image_bytes(pixels, "JPEG", quality=quality, progressive=progressive, **options)
    np.testing.assert_array_equal(decode(data).pixels, pillow(data))


def test_cmyk_jpeg() -> None:
    file = io.BytesIO()
    Image.fromarray(SMOOTH).convert("CMYK").save(file, "JPEG", quality=95)
    picture, expected = decode(file.getvalue()), pillow(file.getvalue())
    # Each decoder rounds CMYK in its own way.
    assert np.abs(picture.pixels.astype(int) - expected).max() <= 1
    assert np.abs(picture.pixels.astype(int) - SMOOTH).mean() < 6


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_marks_are_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_bytes(SMOOTH, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    picture = decode(data)
    np.testing.assert_array_equal(picture.pixels, ORIENTED[orientation](pillow(data)))
    assert picture.notes == (("turned upright",) if orientation > 1 else ())


def test_broken_exif_is_no_broken_picture() -> None:
    plain = image_bytes(NOISE, "JPEG")
    data = plain[:2] + b"\xff\xe1\x00\x20Exif\0\0" + b"garbage?" * 3 + plain[2:]
    np.testing.assert_array_equal(decode(data).pixels, pillow(plain))


def test_several_pictures_in_one_file() -> None:
    """MPO, as stereo cameras and telephones write: the first one."""
    file = io.BytesIO()
    first, second = Image.fromarray(SMOOTH), Image.fromarray(255 - SMOOTH)
    first.save(file, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(file.getvalue()).pixels, pillow(image_bytes(SMOOTH, "JPEG")))


def test_bytes_after_a_jpeg_do_no_harm() -> None:
    data = image_bytes(NOISE, "JPEG")
    np.testing.assert_array_equal(decode(data + b"appended by a camera" * 50).pixels, pillow(data))


# Damage.


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_a_cut_file_is_damaged(format: str, share: float) -> None:
    data = image_bytes(NOISE, format)
    with pytest.raises(CorruptImage):
        decode(data[: int(share * len(data))])


def test_reasons_tell_damage_from_other_files() -> None:
    cut = {format: image_bytes(NOISE, format)[:1000] for format in ("JPEG", "PNG")}
    exif = Image.Exif()
    exif[0x0112] = 6
    cut["JPEG with EXIF"] = image_bytes(NOISE, "JPEG", exif=exif)[:1000]
    cut["JPEG header"] = b"\xff\xd8\xff\xe0"
    for data in cut.values():
        with pytest.raises(CorruptImage, match="corrupt"):
            decode(data)
    with pytest.raises(CorruptImage, match="empty file"):
        decode(b"")
    for data in (b"some text in a file that is named .jpg", b"<html></html>", b"\0" * 5000, b"\x80\x04K\x01."):
        with pytest.raises(CorruptImage, match="not an image"):
            decode(data)


@pytest.mark.parametrize("garbage", [b"\xff\xd9", b"\xff\xd0", b"\xff\x00" * 40, b"\0" * 80])
def test_garbage_in_the_middle_of_a_jpeg_is_damage(garbage: bytes) -> None:
    data = image_bytes(NOISE, "JPEG", quality=95)
    middle = len(data) // 2
    broken = data[:middle] + garbage + data[middle + len(garbage) :]
    assert pillow(broken).shape == NOISE.shape  # Pillow shows something, without a word
    with pytest.raises(CorruptImage, match="corrupt"):
        decode(broken)


def test_broken_png_chunks_are_damage() -> None:
    data = image_bytes(NOISE, "PNG")
    at = data.index(b"IDAT") + 4
    for broken in (data[:at] + b"\0" * 50 + data[at + 50 :], data[:20] + b"\xff" * 4 + data[24:]):
        with pytest.raises(CorruptImage):
            decode(broken)


@pytest.mark.parametrize("where", ["decode", "decode_into"])
def test_bombs_are_refused_before_they_are_decoded(where: str) -> None:
    """Each file claims many pixels and holds hardly any: decoding it would say "corrupt"."""
    width, height = 4001, 3000
    small = image_bytes(NOISE, "JPEG")
    at = small.index(b"\xff\xc0") + 5
    bombs = [
        png((width, height, 8, 2), [(b"IDAT", zlib.compress(b"\0" * 99))]),
        png((100_000, 100_000, 8, 2), [(b"IDAT", zlib.compress(b"\0" * 99))]),  # Pillow's own limit too
        small[:at] + struct.pack(">HH", height, width) + small[at + 4 :],
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\0\0\0,\0\0\0\0"
        + struct.pack("<HH", width, height)
        + b"\0\2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bomb in bombs:
            with pytest.raises(CorruptImage, match="too many pixels"):
                if where == "decode":
                    decode(bomb, max_pixels=width * height - 1)
                else:
                    out = np.empty((8, 8, 3), np.uint8)
                    decode_into(bomb, out, DecodeOptions(square(8), "area", "center", width * height - 1))
    with pytest.raises(CorruptImage, match="corrupt"):
        decode(bombs[0], max_pixels=width * height)


def test_limit_of_pixels_is_the_last_one_allowed() -> None:
    for format in ("PNG", "JPEG"):
        data = image_bytes(NOISE, format)
        assert decode(data, max_pixels=40 * 56).pixels.shape == (40, 56, 3)
        with pytest.raises(CorruptImage, match="too many pixels"):
            decode(data, max_pixels=40 * 56 - 1)


# Depths, palettes, transparency, frames.


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    picture = decode(image_bytes(NOISE, format, **({"lossless": True} if format == "WEBP" else {})))
    np.testing.assert_array_equal(picture.pixels, NOISE)
    assert picture.notes == ()


def test_grey_and_black_and_white() -> None:
    np.testing.assert_array_equal(decode(image_bytes(GREY)).pixels, np.repeat(GREY[..., None], 3, 2))
    bits = GREY > 127
    np.testing.assert_array_equal(decode(image_bytes(bits)).pixels, np.repeat(bits[..., None] * np.uint8(255), 3, 2))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    picture = decode(image_bytes(values, format))
    np.testing.assert_array_equal(picture.pixels[..., 1], np.round(values / 257).astype(np.uint8))
    assert picture.notes == ("16 bit",)


def test_16_bit_colour_is_scaled() -> None:
    values = RNG.integers(0, 65536, (8, 8, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    picture = decode(png((8, 8, 16, 2), [(b"IDAT", zlib.compress(rows))]))
    assert np.abs(picture.pixels - values / 257).max() <= 1


def test_float_pixels_have_no_scale() -> None:
    with pytest.raises(CorruptImage, match="float"):
        decode(image_bytes(np.ones((4, 4), np.float32), "TIFF"))


def over(pixels: np.ndarray, alpha: np.ndarray, background: int) -> np.ndarray:
    return pixels * (alpha / 255) + background * (1 - alpha / 255)


@pytest.mark.parametrize("background", [0, 127, 255])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_on_the_background(format: str, background: int) -> None:
    alpha = np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1))[..., None]
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    picture = decode(image_bytes(np.concatenate([NOISE, alpha], 2), format, **options), background=background)
    assert np.abs(picture.pixels - over(NOISE, alpha, background)).max() <= 1.01
    assert picture.notes == ("alpha",)
    assert (picture.pixels[:, 0] == background).all()


def test_grey_with_alpha() -> None:
    alpha = NOISE[..., 1]
    picture = decode(image_bytes(np.stack([GREY, alpha], 2)), background=200)
    expected = over(np.repeat(GREY[..., None], 3, 2), alpha[..., None], 200)
    assert np.abs(picture.pixels - expected).max() <= 1.01


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palettes(format: str) -> None:
    image = Image.fromarray(GREY // 64, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)
    for transparent in (None, 2):
        file = io.BytesIO()
        image.save(file, format, **({} if transparent is None else {"transparency": transparent}))
        shown = colours.copy()
        if transparent is not None:
            shown[transparent] = 255
        picture = decode(file.getvalue())
        np.testing.assert_array_equal(picture.pixels, shown[GREY // 64])
        assert picture.notes == (() if transparent is None else ("alpha",))


def test_a_transparent_colour() -> None:
    """The tRNS chunk of greyscale and colour PNGs."""
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    data = png(
        (2, 1, 8, 2), [(b"tRNS", struct.pack(">HHH", 4, 5, 6)), (b"IDAT", zlib.compress(b"\0" + pixels.tobytes()))]
    )
    assert decode(data, background=9).pixels.tolist() == [[[1, 2, 3], [9, 9, 9]]]
    data = png((2, 1, 8, 0), [(b"tRNS", struct.pack(">H", 7)), (b"IDAT", zlib.compress(b"\0\x07\x08"))])
    assert decode(data, background=9).pixels.tolist() == [[[9, 9, 9], [8, 8, 8]]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), colour, np.uint8)) for colour in ([255, 0, 0], [0, 255, 0])]
    file = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    picture = decode(file.getvalue())
    assert (picture.pixels == [255, 0, 0]).all()
    assert picture.notes == ("animation, first frame taken",)


# Into a batch, at its resolution.


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decode_into_writes_the_same_pixels(format: str) -> None:
    cut = NOISE[:40, :40]
    out = np.zeros((3, 40, 40, 3), np.uint8)
    data = image_bytes(cut, format)
    assert not decode_into(data, out[1], DecodeOptions(square(40)))
    np.testing.assert_array_equal(out[1], pillow(data))
    assert not out[0].any()
    assert not out[2].any()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_decode_into_resizes_what_has_another_size(format: str, crop: str) -> None:
    data, out = image_bytes(SMOOTH, format), np.zeros((16, 16, 3), np.uint8)
    assert decode_into(data, out, DecodeOptions(square(16), "bicubic", crop))
    np.testing.assert_array_equal(out, fit(pillow(data), square(16), "bicubic", crop))


def photo(height: int, width: int) -> np.ndarray:
    """A picture with as much detail at each scale as photographs have, and some noise."""
    walk = np.random.default_rng(height).normal(size=(height, width, 3)).cumsum(0).cumsum(1)
    walk = 230 * (walk - walk.min((0, 1))) / np.ptp(walk, (0, 1)) + RNG.normal(scale=4, size=walk.shape)
    return walk.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("crop", ["center", "stretch"])
@pytest.mark.parametrize(("filter", "worst"), [("lanczos", 1.5), ("area", 2.0)])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 420), (1030, 256), (512, 513)])
def test_a_scaled_decode_is_nearly_the_same(height: int, width: int, filter: str, worst: float, crop: str) -> None:
    """Of pictures four times as large and more; mean difference in grey levels. Smaller ones are decoded in full."""
    data = image_bytes(photo(height, width), "JPEG", quality=90)
    options = DecodeOptions(square(64), filter, crop, max_pixels=height * width)
    full, scaled = np.empty((2, 64, 64, 3), np.uint8)
    assert decode_into(data, full, options)
    assert decode_into(data, scaled, replace(options, scaled=True))
    difference = np.abs(full.astype(int) - scaled)
    assert 0 < difference.mean() < worst
    assert difference.max() < 16
    part = decode(data, least=(128, 128)).pixels
    assert min(part.shape[:2]) >= 128
    assert max(part.shape[:2]) <= (max(height, width) + 1) // 2
    with pytest.raises(CorruptImage, match="too many pixels"):  # the picture's own size counts
        decode_into(data, scaled, replace(options, max_pixels=height * width - 1, scaled=True))


@pytest.mark.parametrize(("side", "format"), [(64, "JPEG"), (65, "JPEG"), (255, "JPEG"), (600, "PNG")])
def test_a_scaled_decode_changes_nothing_where_there_is_no_room(side: int, format: str) -> None:
    data, options = image_bytes(photo(side, side), format), DecodeOptions(square(64), "area")
    full, scaled = np.empty((2, 64, 64, 3), np.uint8)
    assert decode_into(data, full, options) == decode_into(data, scaled, replace(options, scaled=True))
    np.testing.assert_array_equal(full, scaled)


def test_a_scaled_decode_keeps_what_else_is_done() -> None:
    """Orientation marks, damage and grey pictures."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = photo(400, 256)
    upright, turned = (decode(image_bytes(pixels, "JPEG", **more), least=(64, 64)) for more in ({}, {"exif": exif}))
    np.testing.assert_array_equal(turned.pixels, np.rot90(upright.pixels, -1))
    with pytest.raises(CorruptImage, match="corrupt"):
        decode(image_bytes(photo(400, 256), "JPEG")[:9000], least=(64, 64))
    grey = decode(image_bytes(photo(400, 256)[..., 0], "JPEG"), least=(64, 64)).pixels
    assert (grey == grey[..., :1]).all()


def test_decode_into_gives_the_reason_too() -> None:
    out = np.zeros((40, 40, 3), np.uint8)
    data = image_bytes(NOISE[:40, :40], "JPEG")
    for broken, reason in ((data[:900], "corrupt"), (b"text", "not an image")):
        with pytest.raises(CorruptImage, match=reason):
            decode_into(broken, out, DecodeOptions(square(40), "area"))


# Crop and resize.


def test_fit_keeps_a_picture_that_fits() -> None:
    np.testing.assert_array_equal(fit(NOISE[:40, :40], square(40)), NOISE[:40, :40])


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (8, 21), (9, 8), (8, 8)])
def test_center_takes_the_largest_centred_square(height: int, width: int) -> None:
    """By area at half the size, each result is the mean of four pixels of that square and of no others."""
    pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    top, left = (height - 8) // 2, (width - 8) // 2
    middle = pixels[top : top + 8, left : left + 8].astype(float)
    expected = middle.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(fit(pixels, square(4), "area", "center") - expected).max() <= 1  # Pillow rounds after each direction


def test_squeeze_takes_all_of_it() -> None:
    expected = NOISE.astype(float).reshape(8, 5, 8, 7, 3).mean((1, 3))
    assert np.abs(fit(NOISE, square(8), "area", "stretch") - expected).max() <= 1


@pytest.mark.parametrize(
    ("filter", "pillows"), [("lanczos", Image.LANCZOS), ("bicubic", Image.BICUBIC), ("area", Image.BOX)]
)
@pytest.mark.parametrize("resolution", [5, 16, 40, 100])
def test_filters_are_pillows(filter: str, pillows: int, resolution: int) -> None:
    image, size = Image.fromarray(NOISE), (resolution, resolution)
    np.testing.assert_array_equal(
        fit(NOISE, square(resolution), filter, "stretch"), np.asarray(image.resize(size, pillows))
    )
    middle = np.asarray(image.crop((8, 0, 48, 40)).resize(size, pillows))  # nothing outside of the square bleeds in
    np.testing.assert_array_equal(fit(NOISE, square(resolution), filter, "center"), middle)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_extreme_shapes_fit(shape: tuple[int, int], crop: str) -> None:
    out = fit(np.full((*shape, 3), 77, np.uint8), square(8), "lanczos", crop)
    assert out.shape == (8, 8, 3)
    assert (out == 77).all()
