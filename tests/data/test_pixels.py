"""What is said of stored values and of cropping, and what a range makes of them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions, decode
from distgan.data.encode import PackOptions
from distgan.data.image_format import CorruptImage
from distgan.data.pack import pack
from distgan.data.pack_summary import report
from distgan.data.pixels import report as pixel_report
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError
from distgan.image_spec import square
from distgan.storage.byte_ranges import ByteRangeReader

STORED = np.random.default_rng(0).integers(0, 4096, (12, 8, 3))


def encoded(values: np.ndarray, format: str = "TIFF") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format)
    return file.getvalue()


def color_png(values: np.ndarray) -> bytes:
    """16-bit RGB, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


GREY = STORED[..., 0]
KINDS = {
    "16-bit PNG": (encoded(GREY.astype(np.uint16), "PNG"), GREY),
    "16-bit TIFF": (encoded(GREY.astype(np.uint16)), GREY),
    "32-bit TIFF": (encoded((GREY - 1000).astype(np.int32)), GREY - 1000),
    "float TIFF": (encoded((GREY / 4095).astype(np.float32)), GREY / 4095),
    "16-bit colors": (color_png(STORED), STORED),
    "8-bit": (encoded((GREY // 300).astype(np.uint8), "PNG"), GREY // 300),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_maps_stored_values_linearly(kind: str) -> None:
    data, values = KINDS[kind]
    low, high = np.quantile(values, [0.1, 0.9])
    found = decode(data, value_range=(low, high), measure=True)
    levels = (values.reshape(12, 8, -1) - low).clip(0, high - low) * 255 / (high - low)
    assert np.abs(found.pixels - levels).max() <= 0.5 + 1e-4
    assert kind == "8-bit" or found.values == pytest.approx((values.min(), values.max()))


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(CorruptImage, match="NaN"):
        decode(encoded(np.full((4, 4), np.nan, np.float32)), value_range=(0, 1))


def folder(path: Path, data: bytes, suffix: str = "png") -> str:
    path.mkdir()
    for i in range(4):
        (path / f"{i}.{suffix}").write_bytes(data)
    return str(path)


@pytest.mark.parametrize("kind", ["16-bit PNG", "32-bit TIFF", "16-bit colors"])
def test_dark_data_is_reported_by_pack_with_the_range_that_mends_it(tmp_path: Path, kind: str) -> None:
    data, values = KINDS[kind]
    source, out = folder(tmp_path / "in", data), str(tmp_path / "out")
    text = "\n".join(report(pack(source, out, PackOptions(), workers=1), out, 1))
    wanted = "--range 0 4095" if values.min() >= 0 else f"--range {values.min()} {values.max()}"
    assert f"brightest value is {values.max()}" in text
    assert wanted in text
    bounds = [float(word) for word in wanted.split()[1:]]
    again = "\n".join(report(pack(source, out, PackOptions(range=tuple(bounds)), workers=1, overwrite=True), out, 1))
    assert "warning" not in again


def test_floats_are_packed_with_a_range_alone(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "in", KINDS["float TIFF"][0], "tif"), str(tmp_path / "out")
    with pytest.raises(DataError, match="--range 0 1"):
        pack(source, out, PackOptions(), workers=1)
    assert pack(source, out, PackOptions(range=(0, 1)), workers=1).samples == 4
    with pytest.raises(ConfigError, match="--range"):
        PackOptions(range=(1, 1))


def shards_of_others(tmp_path: Path, data: bytes, suffix: str) -> Dataset:
    import tarfile

    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(4):
            info = tarfile.TarInfo(f"{i}.{suffix}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return Dataset(find_shards(str(tmp_path / "*")), ByteRangeReader(), cache_dir=tmp_path / "cache")


def test_dark_and_cropped_images_that_are_streamed_are_reported(tmp_path: Path) -> None:
    lines, warnings = pixel_report(shards_of_others(tmp_path, KINDS["16-bit PNG"][0], "png"), DecodeOptions(square(8)))
    assert "--range 0 4095" in warnings[0]
    assert any("33.3%" in line for line in lines)  # 12 x 8 pixels become 8 x 8


def test_floats_that_are_streamed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--range 0 1"):
        pixel_report(shards_of_others(tmp_path, KINDS["float TIFF"][0], "tif"), DecodeOptions(square(8)))


def test_a_packed_set_keeps_what_was_done_to_its_pixels(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    text = "\n".join(
        report(pack(folder(tmp_path / "in", KINDS["16-bit PNG"][0]), out, PackOptions(resolution=8), workers=1), out, 1)
    )
    lines, warnings = pixel_report(Dataset(find_shards(out), ByteRangeReader()), DecodeOptions(square(8)))
    assert "33.3%" in text
    assert any("33.3%" in line for line in lines)
    assert "--range 0 4095" in warnings[0]


def test_16_bit_arrays_are_scaled_like_16_bit_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([[[0, 257], [65535, 514]]] * 3, np.uint16))
    pack(str(tmp_path / "a.npz"), str(tmp_path / "out"), PackOptions(), workers=1)
    data = Dataset(find_shards(str(tmp_path / "out")), ByteRangeReader())
    assert data.read(0, DecodeOptions(square(2)))[..., 0].tolist() == [[0, 1], [255, 2]]


def test_indexes_of_shards_are_no_pictures(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", KINDS["8-bit"][0])
    (tmp_path / "in" / "old").mkdir()
    (tmp_path / "in" / "old" / "000000.tar.index").write_bytes(b"x")
    assert not pack(source, str(tmp_path / "out"), PackOptions(), workers=1).skipped
