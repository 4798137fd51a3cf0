"""Images of any channels and depth: what a file's numbers become, against Pillow, tifffile and closed forms."""

import importlib.util
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import image_bytes, tar_bytes

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions, decode, decode_into
from distgan.data.image_format import CorruptImage
from distgan.data.loader import Stream, StreamOptions
from distgan.data.open_shards import RankInfo
from distgan.data.resize import FILTERS, cropped, fit
from distgan.data.sample_parts import DatasetOptions
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.errors import DataError
from distgan.image_spec import DType, ImageSpec
from distgan.storage.byte_ranges import ByteRangeReader

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (20, 28, 3)).astype(np.uint8)
SMOOTH = np.asarray(Image.fromarray(COLORS[:4, :5]).resize((28, 20), Image.BICUBIC))
RGBA = np.concatenate([COLORS, RNG.integers(0, 256, (20, 28, 1)).astype(np.uint8)], 2)
RGBA[:5, ..., 3] = 0
WORDS = RNG.integers(0, 65536, (20, 28)).astype(np.uint16)
needs_tifffile = pytest.mark.skipif(importlib.util.find_spec("tifffile") is None, reason="tifffile is not installed")


def spec(channels: int, dtype: DType = "uint8", low: float = 0, high: float = 0, alpha: bool = False) -> ImageSpec:
    if dtype == "float32" and low == high:
        low, high = -1000, 1000
    return ImageSpec(20, 28, channels, dtype, low, high, alpha)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def png16(values: np.ndarray) -> bytes:
    """16-bit PNGs of 1 to 4 channels, which Pillow does not write."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    out = b"\x89PNG\r\n\x1a\n"
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def tiff(values: np.ndarray, **options: object) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


# 8 bits.


def test_gray_is_one_channel_and_colors_become_pillows_luma() -> None:
    gray = COLORS[..., 0]
    np.testing.assert_array_equal(decode(image_bytes(gray), image=spec(1)).pixels, gray[..., None])
    luma = np.asarray(Image.fromarray(COLORS).convert("L"))[..., None]
    for data in (image_bytes(COLORS), npy(COLORS)):
        np.testing.assert_array_equal(decode(data, image=spec(1)).pixels, luma)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_as_gray(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(SMOOTH).convert(mode).save(file, "JPEG", quality=95)
    out = np.empty((20, 28, 1), np.uint8)
    assert not decode_into(file.getvalue(), out, DecodeOptions(spec(1)))
    np.testing.assert_array_equal(decode(file.getvalue(), image=spec(1)).pixels, out)
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB").convert("L"))
    assert np.abs(out[..., 0].astype(int) - expected).max() <= 1  # the stored gray is not rounded through colors


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_a_channel_and_hides_its_colors(format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = decode(image_bytes(RGBA, format, **options), image=spec(4, alpha=True)).pixels
    np.testing.assert_array_equal(pixels[5:], np.where(RGBA[5:, ..., 3:] == 0, 0, RGBA[5:]))
    assert not pixels[:5].any()
    for data in (image_bytes(COLORS), image_bytes(COLORS, "JPEG")):  # without alpha: all is visible
        assert (decode(data, image=spec(4, alpha=True)).pixels[..., 3] == 255).all()
    np.testing.assert_array_equal(
        decode(image_bytes(RGBA[5:, ..., 2:]), image=spec(2, alpha=True)).pixels,
        np.where(RGBA[5:, ..., 3:] == 0, 0, RGBA[5:, ..., 2:]),
    )


def test_an_image_of_other_channels_is_refused_with_the_numbers() -> None:
    for data, bands in ((npy(np.zeros((20, 28, 5), np.uint8)), 5), (npy(np.zeros((20, 28, 2), np.uint8)), 2)):
        with pytest.raises(CorruptImage, match=f"^{bands} channels, data.channels is 3$"):
            decode(data)
    for data in (image_bytes(COLORS), image_bytes(COLORS, "JPEG"), image_bytes(COLORS, "TIFF")):
        with pytest.raises(CorruptImage, match=r"^3 channels, data.channels is 5$"):
            decode(data, image=spec(5))
    with pytest.raises(CorruptImage, match=r"^1 channel, data.channels is 5$"):
        decode(image_bytes(WORDS), image=spec(5, "uint16"))
    cmyk = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(cmyk, "JPEG")
    with pytest.raises(CorruptImage, match=r"^3 channels, data.channels is 4$"):  # it is read as colors
        decode(cmyk.getvalue(), image=spec(4))


@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_that_has_no_channel_is_named_with_the_setting(bands: int) -> None:
    data = image_bytes(np.zeros((8, 8, bands), np.uint8))
    found = "1 channel" if bands == 2 else "3 channels"
    with pytest.raises(CorruptImage, match=rf"^{found} and alpha, data.channels is {bands}: data.alpha=channel keeps"):
        decode(data, image=spec(bands))
    with pytest.raises(CorruptImage, match=rf"^{found} and alpha, data.channels is 7$"):
        decode(data, image=spec(7))
    assert decode(data, image=spec(bands, alpha=True)).pixels.shape == (8, 8, bands)


# Deeper.


def test_16_bit_pngs_keep_every_bit() -> None:
    for bands in (1, 3):
        values = RNG.integers(0, 65536, (20, 28, bands)).astype(np.uint16)
        for dtype in ("uint16", "float32"):
            pixels = decode(png16(values), image=spec(bands, dtype)).pixels
            assert pixels.dtype == dtype
            np.testing.assert_array_equal(pixels, values)


def test_16_bit_colors_become_gray_by_the_same_weights() -> None:
    values = RNG.integers(0, 65536, (20, 28, 3)).astype(np.uint16)
    expected = values.astype(float) @ np.array([0.299, 0.587, 0.114])
    for dtype in ("uint16", "float32"):
        gray = decode(png16(values), image=spec(1, dtype)).pixels[..., 0]
        assert np.abs(gray - expected).max() <= 1.0


def test_levels_become_16_bit_levels_and_numbers_stay_numbers() -> None:
    wanted = spec(1, "uint16")
    assert (decode(image_bytes(np.full((4, 4), 255, np.uint8)), image=wanted).pixels == 65535).all()
    assert (decode(npy(np.full((4, 4), 255, np.uint8)), image=wanted).pixels == 255).all()
    assert (decode(image_bytes(np.full((4, 4), 255, np.uint8)), image=spec(1, "float32")).pixels == 255).all()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<i2", ">u2", "<i8", "|u1"])
def test_arrays_of_any_numbers_become_float32(dtype: str) -> None:
    values = RNG.integers(0, 200, (20, 28, 5)).astype(dtype)
    picture = decode(npy(values), image=spec(5, "float32"))
    assert picture.pixels.dtype == np.float32
    np.testing.assert_array_equal(picture.pixels, values.astype(np.float32))
    assert picture.notes == ()


def test_what_a_type_cannot_hold_is_said() -> None:
    wide = np.full((4, 4), 1 / 3)
    assert decode(npy(wide), image=spec(1, "float32")).notes == ("float64 rounded to float32",)
    refused: list[tuple[np.ndarray, ImageSpec, str]] = [
        (np.full((4, 4), 1e300), spec(1, "float32"), "beyond those of float32"),
        (np.full((4, 4), 0.5), spec(1, "uint16"), "float pixels, data.dtype is uint16"),
        (np.full((4, 4), 70000), spec(1, "uint16"), "values of 70000 to 70000, data.dtype is uint16"),
        (np.full((4, 4), -3, np.int16), spec(1, "uint16"), "values of -3 to -3"),
        (np.full((4, 4), 0.5), spec(1), "float pixels"),
        (np.zeros((4, 4), complex), spec(1), "no array|complex"),
        (np.zeros((4, 4, 2, 2), np.uint8), spec(1), "shape"),
        (np.zeros((0, 4), np.uint8), spec(1), "shape"),
    ]
    refused += [(np.array([[0.0, bad]]), spec(1, "float32"), "not numbers") for bad in (np.nan, np.inf, -np.inf)]
    for values, wanted, reason in refused:
        with pytest.raises(CorruptImage, match=reason):
            decode(npy(values), image=wanted)
    with pytest.raises(CorruptImage, match="not numbers"):
        decode(image_bytes(np.array([[0, np.nan]], np.float32), "TIFF"), image=spec(1, "float32"))


def test_channels_in_front_are_accepted_where_nothing_else_fits() -> None:
    values = RNG.normal(size=(5, 20, 28)).astype(np.float32)
    picture = decode(npy(values), image=spec(5, "float32"))
    np.testing.assert_array_equal(picture.pixels, values.transpose(1, 2, 0))
    assert picture.notes == ("channels first",)
    with pytest.raises(CorruptImage, match=r"\[H, W, C\] or \[C, H, W\]"):
        decode(npy(np.zeros((5, 20, 5), np.float32)), image=spec(5, "float32"))


@pytest.mark.parametrize("cut", [7, 9, 60, 128, 300])
def test_a_cut_array_is_corrupt(cut: int) -> None:
    with pytest.raises(CorruptImage):
        decode(npy(np.zeros((20, 28), np.uint16))[:cut], image=spec(1, "uint16"))


def test_alpha_of_16_bits_is_a_share_of_the_range() -> None:
    values = RNG.integers(1, 65536, (20, 28, 4)).astype(np.uint16)
    values[0, :, 3] = 0
    pixels = decode(png16(values), image=spec(4, "uint16", 0, 4095, alpha=True)).pixels
    np.testing.assert_array_equal(pixels[1:, ..., :3], values[1:, ..., :3])
    np.testing.assert_array_equal(pixels[..., 3], np.rint(values[..., 3] / 65535 * 4095))
    assert not pixels[0].any()
    composite = decode(png16(values), image=spec(3, "uint16"), background=255).pixels
    share = values[..., 3:] / 65535
    assert np.abs(composite - (values[..., :3] * share + 65535 * (1 - share))).max() <= 1


@needs_tifffile
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiffs_of_many_bands(dtype: DType, compression: str | None, planar: str) -> None:
    values = (RNG.random((20, 28, 5)) * 200).astype(dtype)
    stored = values.transpose(2, 0, 1) if planar == "separate" else values
    options = {"planarconfig": planar, "photometric": "minisblack", "compression": compression}
    pixels = decode(tiff(np.ascontiguousarray(stored), **options), image=spec(5, dtype)).pixels
    np.testing.assert_array_equal(pixels, values)
    with pytest.raises(CorruptImage, match=r"^5 channels, data.channels is 3$"):
        decode(tiff(np.ascontiguousarray(stored), **options), image=spec(3, dtype))


@needs_tifffile
def test_tiffs_of_gray_and_colors_in_depth() -> None:
    for values in (RNG.normal(size=(20, 28)), RNG.normal(size=(20, 28)).astype("f4")):
        pixels = decode(tiff(values), image=spec(1, "float32")).pixels
        np.testing.assert_array_equal(pixels[..., 0], values.astype(np.float32))
    for dtype in ("uint16", "float32"):
        values = (RNG.random((20, 28, 3)) * 60000).astype(dtype)
        np.testing.assert_array_equal(
            decode(tiff(values, photometric="rgb"), image=spec(3, dtype, 0, 65535)).pixels, values
        )
    pages = RNG.integers(0, 60000, (5, 20, 28)).astype(np.uint16)
    picture = decode(tiff(pages, photometric="minisblack"), image=spec(5, "uint16"))
    np.testing.assert_array_equal(picture.pixels, pages.transpose(1, 2, 0))
    assert picture.notes == ("pages as channels",)
    bigtiff = tiff(np.ascontiguousarray(pages.transpose(1, 2, 0)), bigtiff=True, planarconfig="contig")
    np.testing.assert_array_equal(decode(bigtiff, image=spec(5, "uint16")).pixels, pages.transpose(1, 2, 0))


@needs_tifffile
def test_a_damaged_tiff_of_bands_is_corrupt() -> None:
    data = tiff(RNG.integers(0, 255, (20, 28, 5)).astype(np.uint8), planarconfig="contig", compression="zlib")
    for cut in (len(data) // 3, len(data) - 400):
        with pytest.raises(CorruptImage):
            decode(data[:cut], image=spec(5))
    flat = tiff(np.zeros((4096, 4096, 5), np.uint8), planarconfig="contig", compression="zlib", rowsperstrip=4096)
    small = flat.replace(struct.pack("<HHII", 257, 4, 1, 4096), struct.pack("<HHII", 257, 4, 1, 8))
    small = small.replace(struct.pack("<HHII", 278, 4, 1, 4096), struct.pack("<HHII", 278, 4, 1, 8))
    try:
        assert decode(small, image=spec(5)).pixels.shape == (8, 4096, 5)
    except CorruptImage as reason:
        assert "inflates" in str(reason) or "corrupt" in str(reason)


@needs_tifffile
def test_tiffs_with_changed_bytes_are_read_or_corrupt(caplog: pytest.LogCaptureFixture) -> None:
    """Each byte of the directory becomes 0, 255 or another: nothing else is raised, nothing is logged."""
    values = RNG.integers(0, 999, (8, 9, 5)).astype(np.uint16)
    data = tiff(values, planarconfig="contig", photometric="minisblack", compression="zlib")
    refused = 0
    for at in range(4, min(len(data), 240)):
        for value in (0, 255, data[at] ^ 1):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                assert decode(changed, image=spec(5, "uint16")).pixels.shape[2] == 5
            except CorruptImage:
                refused += 1
    assert refused > 50
    assert not caplog.records


def test_a_missing_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tifffile" else find(name))
    header = b"II*\0" + struct.pack("<IH", 8, 3)
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (277, 3, 1, 5)]
    data = header + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    with pytest.raises(CorruptImage, match=r"distgan\[tiff\]"):
        decode(data, image=spec(5))


# Size.


@pytest.mark.parametrize("filter", FILTERS)
def test_deep_pixels_are_resized_in_float_each_channel_alone(filter: str) -> None:
    values = (RNG.random((20, 28, 5)) * 4000).astype(np.float32)
    wanted = ImageSpec(10, 9, 5, "float32", 0, 4000)
    resized = fit(values, wanted, filter, "stretch")
    for band in range(5):
        image = Image.fromarray(np.ascontiguousarray(values[..., band]))
        np.testing.assert_array_equal(resized[..., band], np.asarray(image.resize((9, 10), FILTERS[filter])))
    whole = fit(values.astype(np.uint16), ImageSpec(10, 9, 5, "uint16"), filter, "stretch")
    assert np.abs(whole - resized.clip(0, 65535)).max() <= 1.5  # rounded before, and after
    levels = fit((values / 16).astype(np.uint8), ImageSpec(10, 9, 5), filter, "stretch")
    assert np.abs(levels - (resized / 16).clip(0, 255)).max() <= 2.5


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_hidden_colors_do_not_bleed(dtype: DType) -> None:
    """Visible pixels are all of one color: so are all that are made of them, whatever is stored beside them."""
    wanted = ImageSpec(8, 8, 4, dtype, 0, {"uint8": 255, "uint16": 65535, "float32": 1}[dtype], alpha=True)
    full = wanted.high
    pixels = np.zeros((32, 32, 4), dtype)
    pixels[:] = np.array([1, 0, 1, 0], np.float32) * full
    seen = RNG.random((32, 32)) < 0.5
    pixels[seen] = (np.array([0.4, 0.8, 0.2, 1], np.float32) * np.float32(full)).astype(dtype)
    small = fit(pixels, wanted, "area").astype(float) / full
    visible = small[..., 3] > 0.1
    assert visible.any()
    assert np.abs(small[visible][:, :3] - [0.4, 0.8, 0.2]).max() < 0.03
    assert np.abs(small[..., 3] - seen.reshape(8, 4, 8, 4).mean((1, 3))).max() < 0.01


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (30, 90), (33, 44), (7, 200), (48, 48)])
def test_the_largest_part_of_other_proportions_is_taken(height: int, width: int) -> None:
    """Rows and columns are numbered, so that the part can be read from the result."""
    wanted = ImageSpec(12, 16, 2, "float32", 0, 100)
    values = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).astype(np.float32)
    part_height = min(height, round(width * 12 / 16))
    part_width = min(width, round(height * 16 / 12))
    for place in (None, 0.0, 0.999999):
        small = fit(values, wanted, "area", "random", place=place)
        share = 0.5 if place is None else round(place)
        center = (
            (height - part_height) * share + (part_height - 1) / 2,
            (width - part_width) * share + (part_width - 1) / 2,
        )
        np.testing.assert_allclose(small.mean((0, 1)), center, atol=0.51)
    np.testing.assert_array_equal(fit(values, wanted, "area", "center"), fit(values, wanted, "area", "random"))
    share = 1 - part_height * part_width / (height * width)
    assert abs(cropped(width, height, wanted, "center") - share) < 0.05
    assert cropped(width, height, wanted, "pad") == 0


@pytest.mark.parametrize(("height", "width"), [(40, 10), (10, 40), (24, 32), (1, 300)])
def test_padding_keeps_all_of_it_between_bars(height: int, width: int) -> None:
    wanted = ImageSpec(12, 16, 3)
    out = fit(np.full((height, width, 3), 7, np.uint8), wanted, "lanczos", "pad", background=200)
    inside = (out == 7).all(-1)
    assert (out[~inside] == 200).all()
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert inside.sum() == rows * columns
    assert (rows, columns) == (
        min(12, max(1, round(16 * height / width))),
        min(16, max(1, round(12 * width / height))),
    )
    clear = fit(np.full((height, width, 4), 7, np.uint8), ImageSpec(12, 16, 4, alpha=True), "area", "pad")
    assert (clear[~inside] == 0).all()


def test_a_scaled_decode_of_other_proportions() -> None:
    photo = np.asarray(Image.fromarray(SMOOTH).resize((640, 480), Image.BICUBIC))
    data = image_bytes(photo, "JPEG", quality=90)
    full, scaled = np.empty((2, 48, 96, 3), np.uint8)
    for out, is_scaled in ((full, False), (scaled, True)):
        assert decode_into(data, out, DecodeOptions(ImageSpec(48, 96), "area", scaled=is_scaled))
    assert 0 < np.abs(full.astype(int) - scaled).mean() < 2


# In a stream.


def shard(path: Path, files: list[bytes], suffix: str) -> Dataset:
    path.write_bytes(tar_bytes([(f"{i:04d}.{suffix}", data) for i, data in enumerate(files)]))
    return Dataset([str(path)], ByteRangeReader())


@pytest.fixture
def open_stream() -> Callable[..., Stream]:
    opened: list[Stream] = []

    def start(data: Dataset, image: ImageSpec, crop: str = "center", seed: int = 0, **options: object) -> Stream:
        plan = ShuffleOrder(data.counts, ShuffleLayout.choose(data.num_samples, data.mean_bytes, 8), seed)
        decoding = DecodeOptions(image, "area", crop)
        opened.append(Stream(data, plan, StreamOptions(8, decoding), **options))
        return opened[-1]

    yield start
    for stream in opened:
        stream.close()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_stream_gives_the_stored_numbers(dtype: DType, tmp_path: Path, open_stream: Callable[..., Stream]) -> None:
    values = (RNG.random((16, 20, 28, 1)) * 250).astype(dtype)
    files = [image_bytes(image[..., 0], "TIFF" if dtype == "float32" else "PNG") for image in values]
    data = shard(tmp_path / "a.tar", files, "tif" if dtype == "float32" else "png")
    batch = next(open_stream(data, spec(1, dtype)))
    assert batch.images.dtype == dtype
    np.testing.assert_array_equal(batch.images, values[batch.samples])


def test_a_set_of_other_channels_ends_the_stream_with_the_numbers(
    tmp_path: Path, open_stream: Callable[..., Stream]
) -> None:
    data = shard(tmp_path / "a.tar", [image_bytes(COLORS)] * 8, "png")
    with pytest.raises(DataError, match=r"3 channels, data.channels is 5"):
        next(open_stream(data, spec(5)))


def test_random_crops_are_a_function_of_seed_and_position(tmp_path: Path, open_stream: Callable[..., Stream]) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (10, 1))
    data = shard(tmp_path / "a.tar", [image_bytes(ramp)] * 8, "png")
    image = ImageSpec(10, 10, 1)

    def left_edges(num: int, **options: object) -> np.ndarray:
        stream = open_stream(data, image, "random", **options)
        return np.concatenate([next(stream).images[:, 0, 0, 0].copy() for _ in range(num)])

    whole = left_edges(8)
    assert len(set(whole.tolist())) > 30
    assert abs(whole.mean() - 95) < 25
    np.testing.assert_array_equal(left_edges(4, start=32), whole[32:])
    halves = [left_edges(8, ranks=RankInfo(rank, 2)).reshape(8, 4) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, 1).reshape(-1), whole)
    assert (left_edges(8, seed=1) != whole).any()
    assert data.read(0, DecodeOptions(image, "area", "random"))[0, 0, 0] == 95  # elsewhere: the center


# Several parts of a sample as one image.


def stacked_set(path: Path, num: int, kinds: tuple[str, ...], image_key: str, skip: int = -1) -> tuple[Dataset, list]:
    parts: dict[str, Callable[[int], bytes]] = {
        "rgb.png": lambda i: image_bytes(np.roll(COLORS, i, 0)),
        "nir.png": lambda i: image_bytes(np.roll(COLORS[..., 0], i, 1)),
        "deep.npy": lambda i: npy(np.roll(WORDS, i, 1)),
        "cls": lambda i: b"%d" % (i % 3),
        "small.png": lambda i: image_bytes(COLORS[:9, :9, 0]),
    }
    files = [
        (f"{i:03d}.{kind}", parts[kind](i)) for i in range(num) for kind in kinds if i != skip or kind != "nir.png"
    ]
    path.write_bytes(tar_bytes(files))
    options = DatasetOptions(labels=True, image=image_key, allow_corrupt=skip >= 0)
    return Dataset([str(path)], ByteRangeReader(), options, cache_dir=path.parent / "cache"), files


@pytest.mark.parametrize("order", ["rgb.png,nir.png", "nir.png, RGB.png"])
def test_parts_of_a_sample_are_stacked_in_the_order_named(
    order: str, tmp_path: Path, open_stream: Callable[..., Stream]
) -> None:
    data, _ = stacked_set(tmp_path / "a.tar", 16, ("nir.png", "cls", "rgb.png"), order)
    batch = next(open_stream(data, spec(4)))
    for image, label, sample in zip(batch.images, batch.labels, batch.samples):
        colors, infrared = np.roll(COLORS, sample, 0), np.roll(COLORS[..., :1], sample, 1)
        bands = [colors, infrared] if order.startswith("rgb") else [infrared, colors]
        np.testing.assert_array_equal(image, np.concatenate(bands, 2))
        assert label == sample % 3
        np.testing.assert_array_equal(data.read(int(sample), DecodeOptions(spec(4))), image)


def test_stacked_parts_that_do_not_fit(tmp_path: Path, open_stream: Callable[..., Stream]) -> None:
    data, _ = stacked_set(tmp_path / "a.tar", 8, ("nir.png", "deep.npy", "small.png", "cls"), "nir.png,deep.npy")
    pixels = data.read(0, DecodeOptions(spec(2, "uint16")))
    np.testing.assert_array_equal(pixels, np.stack([COLORS[..., 0] * np.uint16(257), WORDS], 2))
    with pytest.raises(DataError, match=r"2 channels, data.channels is 5"):
        next(open_stream(data, spec(5)))
    data = Dataset([str(tmp_path / "a.tar")], ByteRangeReader(), DatasetOptions(image="nir.png,small.png"))
    with pytest.raises(DataError, match=r"parts of 9x9 and 28x20 pixels"):
        next(open_stream(data, spec(2)))
    for key in ("nir.png,nir.png", "nir.png,", ",nir.png"):
        with pytest.raises(DataError, match=r"data\.image_key"):
            Dataset([str(tmp_path / "a.tar")], ByteRangeReader(), DatasetOptions(image=key))
    data, _ = stacked_set(tmp_path / "b.tar", 8, ("nir.png", "rgb.png", "cls"), "rgb.png,nir.png", skip=3)
    assert data.num_samples == 7
    assert any("no nir.png part" in line for line in data.problems)
