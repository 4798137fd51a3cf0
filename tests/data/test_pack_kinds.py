"""Packing images of other channels, types and proportions: what is stored, what the card says, what is read again."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import image_bytes, tar_bytes, write_shards

from distgan import open_stream
from distgan.data import dataset_card, image_file
from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions, decode
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.data.pack_summary import report
from distgan.data.pixels import report as pixel_report
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError
from distgan.image_spec import DType, ImageSpec, square
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.training.factory import range_of_cards

RNG = np.random.default_rng(0)


def opened(out: Path) -> Dataset:
    return Dataset(find_shards(str(out)), ByteRangeReader())


def card(out: Path) -> dict:
    return json.loads((out / "dataset.json").read_text())


def arrays(folder: Path, values: np.ndarray) -> str:
    folder.mkdir()
    for i, one in enumerate(values):
        np.save(folder / f"{i:03d}.npy", one)
    return str(folder)


@pytest.mark.parametrize(
    ("channels", "dtype", "alpha", "suffix"),
    [
        (1, "uint8", False, "png"),
        (2, "uint8", False, "npy"),
        (2, "uint8", True, "png"),
        (4, "uint8", False, "npy"),
        (4, "uint8", True, "png"),
        (5, "uint8", False, "npy"),
        (1, "uint16", False, "png"),
        (3, "uint16", False, "npy"),
        (1, "float32", False, "npy"),
        (7, "float32", False, "npy"),
    ],
)
def test_packed_numbers_are_the_source_s(channels: int, dtype: DType, alpha: bool, suffix: str, tmp_path: Path) -> None:
    values = (RNG.random((6, 20, 28, channels)) * 200 + 1).astype(dtype)
    source = arrays(tmp_path / "in", values)
    options = PackOptions(resolution=(20, 28), channels=channels, dtype=dtype, alpha=alpha)
    summary = pack(source, str(tmp_path / "out"), options, workers=1)
    assert summary.samples == 6
    low, high = (0.0, 300.0) if dtype == "float32" else (0.0, 0.0)
    data = opened(tmp_path / "out")
    assert {part for kind in data._parts.image for part in [kind]} == {suffix}
    wanted = DecodeOptions(ImageSpec(20, 28, channels, dtype, low, high, alpha))
    for i in range(6):
        np.testing.assert_array_equal(data.read(i, wanted), values[i])
    facts = card(tmp_path / "out")
    assert (facts["channels"], facts["dtype"], facts["alpha"]) == (channels, dtype, alpha)
    assert (facts["height"], facts["width"], facts["resolution"], facts["image"]) == (20, 28, None, suffix)
    assert dataset_card.read(find_shards(str(tmp_path / "out"))[0])["channels"] == channels
    again = pack(source, str(tmp_path / "again"), options, workers=1)
    assert again.shards == summary.shards


def test_plain_images_have_the_card_that_they_had(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [5])
    pack(str(tmp_path / "in"), str(tmp_path / "out"), PackOptions(resolution=8), workers=1)
    assert list(card(tmp_path / "out")) == [
        *("made_by", "samples", "classes", "class_counts", "labels_from", "resolution", "crop", "filter", "image"),
        *("background", "max_pixels", "range", "pixel_sizes", "source", "skipped", "changed", "values", "cut_away"),
        *("digest", "shards"),
    ]


def test_a_range_of_deeper_images_is_kept_not_applied(tmp_path: Path) -> None:
    values = RNG.normal(100, 10, (40, 16, 16, 5)).astype(np.float32)
    values[0, 0, 0, 0] = 1e6  # of which quantiles know nothing
    options = PackOptions(channels=5, dtype="float32")
    text = "\n".join(report(pack(arrays(tmp_path / "in", values), str(tmp_path / "out"), options, workers=1), "out", 1))
    low, high = card(tmp_path / "out")["quantiles"]
    assert 60 < low < 75
    assert 125 < high < 140
    assert card(tmp_path / "out")["values"] == [values.min(), 1e6]
    assert f"data.range=[{low},{high}]" in text
    options = PackOptions(channels=5, dtype="float32", range=(0, 110))
    summary = pack(str(tmp_path / "in"), str(tmp_path / "out"), options, workers=1, overwrite=True)
    text = "\n".join(report(summary, "out", 1))
    assert "warning: 1" in text  # a sixth of a normal distribution is beyond one standard deviation on one side
    np.testing.assert_array_equal(
        opened(tmp_path / "out").read(0, DecodeOptions(ImageSpec(16, 16, 5, "float32", 0, 1))), values[0]
    )
    assert dataset_card.value_range(dataset_card.read(str(tmp_path / "out"))) == (0, 110)


def test_a_range_of_8_bits_is_no_range_of_the_stored_numbers(tmp_path: Path) -> None:
    source = arrays(tmp_path / "in", np.full((3, 8, 8), 2000, np.uint16))
    pack(source, str(tmp_path / "out"), PackOptions(range=(0, 4000), channels=1), workers=1)
    assert opened(tmp_path / "out").read(0, DecodeOptions(square(8, 1)))[0, 0, 0] in (127, 128)
    assert dataset_card.value_range(dataset_card.read(str(tmp_path / "out"))) is None


@pytest.mark.parametrize("crop", ["center", "stretch", "random", "pad"])
def test_other_proportions(crop: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(8):
        Image.fromarray(np.tile(np.arange(120, dtype=np.uint8), (60, 1))).save(tmp_path / "in" / f"{i}.png")
    options = PackOptions(resolution=(48, 64), crop=crop, channels=1, filter="area")
    summary = pack(str(tmp_path / "in"), str(tmp_path / "out"), options, workers=1)
    facts, text = card(tmp_path / "out"), "\n".join(report(summary, "out", 1))
    assert facts["cut_away"] == (pytest.approx(1 / 3, abs=1e-4) if crop in ("center", "random") else 0)
    assert facts.get("aspect") == (2.0 if crop == "stretch" else None)
    assert ("stretched" in text) == (crop == "stretch")
    read = [opened(tmp_path / "out").read(i, DecodeOptions(ImageSpec(48, 64, 1))) for i in range(8)]
    assert (len({image.tobytes() for image in read}) > 2) == (crop == "random")
    assert (read[0][0] == 255).all() == (crop == "pad")


def test_a_pair_is_cropped_at_one_place(tmp_path: Path) -> None:
    for side in ("clean", "degraded"):
        (tmp_path / side).mkdir()
        for i in range(5):
            suffix = "png" if side == "clean" else "tif"
            Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (50, 1))).save(tmp_path / side / f"{i}.{suffix}")
    options = PackOptions(resolution=50, crop="random", channels=1)
    wanted = ListingOptions(degraded=str(tmp_path / "degraded"))
    pack(str(tmp_path / "clean"), str(tmp_path / "out"), options, wanted, workers=1)
    data = Dataset(find_shards(str(tmp_path / "out")), ByteRangeReader(), options=pairs())
    decoding = DecodeOptions(square(50, 1))
    for i in range(5):
        np.testing.assert_array_equal(data.read(i, decoding), data.read(i, decoding, degraded=True))


def pairs():
    from distgan.data.sample_parts import DatasetOptions

    return DatasetOptions(pairs=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 5, "image": "jpg"}, "--image jpg"),
        ({"channels": 3, "alpha": True}, "2 .gray. or 4"),
        ({"channels": 33}, "1 to 32"),
        ({"dtype": "int8"}, "choose one of"),
        ({"resolution": (48, 9000)}, "8192"),
        ({"crop": "squeeze"}, "center, stretch, random, pad"),
        ({"crop": "pad", "dtype": "float32", "channels": 1}, "--range"),
    ],
)
def test_options_that_do_not_go_together(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackOptions(**options)


def test_arrays_next_to_images_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(image_bytes(np.zeros((8, 8, 3), np.uint8)))
        np.save(tmp_path / "in" / f"{i}.npy", np.zeros((8, 8), np.uint8))
    summary = pack(str(tmp_path / "in"), str(tmp_path / "out"), PackOptions(), workers=1)
    assert summary.samples == 3
    assert summary.skipped == {"an array next to images": 3}


@pytest.mark.parametrize("in_front", [False, True])
def test_an_npz_of_any_names_and_types(in_front: bool, tmp_path: Path) -> None:
    values = RNG.integers(0, 5000, (6, 20, 28, 5)).astype(np.uint16)
    stored = values.transpose(0, 3, 1, 2) if in_front else values
    np.savez(tmp_path / "a.npz", cubes=stored, kind=np.array(list("abcabc")), mask=np.zeros((6, 20, 28), bool))
    options = PackOptions(channels=5, dtype="uint16")
    with pytest.raises(DataError, match="--images NAME"):
        pack(str(tmp_path / "a.npz"), str(tmp_path / "out"), options, workers=1)
    named = ListingOptions(images="cubes", labels_in="kind")
    summary = pack(str(tmp_path / "a.npz"), str(tmp_path / "out"), options, named, workers=1)
    assert summary.classes == ["a", "b", "c"]
    assert summary.class_counts == [2, 2, 2]
    data = opened(tmp_path / "out")
    np.testing.assert_array_equal(data.read(4, DecodeOptions(ImageSpec(20, 28, 5, "uint16"))), values[4])
    with pytest.raises(DataError, match="no such array"):
        pack(str(tmp_path / "a.npz"), str(tmp_path / "no"), options, ListingOptions(images="cube"))
    with pytest.raises(DataError, match="--channels 5"):
        pack(str(tmp_path / "a.npz"), str(tmp_path / "no"), PackOptions(), named)
    with pytest.raises(ConfigError, match="--labels"):
        ListingOptions(labels_in="kind", labels=False)


# What a run says.


def test_a_set_of_other_kind_than_the_config_is_named_with_the_fix(tmp_path: Path) -> None:
    values = RNG.random((8, 16, 16, 5)).astype(np.float32)
    options = PackOptions(channels=5, dtype="float32")
    pack(arrays(tmp_path / "in", values), str(tmp_path / "out"), PackOptions(**{**vars(options), "resolution": 16}))
    data = opened(tmp_path / "out")
    with pytest.raises(DataError, match=r"5 channels, data.channels is 3.*set data.channels=5"):
        pixel_report(data, DecodeOptions(square(16)))
    with pytest.raises(DataError, match="float pixels"):
        pixel_report(data, DecodeOptions(square(16, 5)))
    good = ImageSpec(16, 16, 5, "float32", 0, 1)
    lines, warnings = pixel_report(data, DecodeOptions(good))
    assert not warnings
    assert any("0.00% are below" in line for line in lines)
    _, (warning,) = pixel_report(data, DecodeOptions(ImageSpec(16, 16, 5, "float32", 2, 3)))
    assert "all of the values are beyond the range 2 to 3" in warning


def test_mixed_channels_are_counted(tmp_path: Path) -> None:
    def npy(channels: int) -> bytes:
        file = io.BytesIO()
        np.save(file, np.zeros((8, 8, channels), np.uint16))
        return file.getvalue()

    files = [(f"{i}.npy", npy(5 if i % 4 else 4)) for i in range(12)]
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    data = Dataset([str(tmp_path / "0.tar")], ByteRangeReader(), cache_dir=tmp_path / "cache")
    _, warnings = pixel_report(data, DecodeOptions(ImageSpec(8, 8, 5, "uint16")))
    assert any("3 cannot be used (4 channels, data.channels is 5)" in line for line in warnings)


def test_a_range_that_values_hardly_fill_is_reported(tmp_path: Path) -> None:
    """12 bits in 16: all is dark for a network that is told 0 to 65535."""
    source = arrays(tmp_path / "in", RNG.integers(0, 4096, (8, 16, 16)).astype(np.uint16))
    pack(source, str(tmp_path / "out"), PackOptions(resolution=16, channels=1, dtype="uint16"), workers=1)
    _, (warning,) = pixel_report(opened(tmp_path / "out"), DecodeOptions(ImageSpec(16, 16, 1, "uint16")))
    assert "6.2% of the range" in warning
    assert not pixel_report(opened(tmp_path / "out"), DecodeOptions(ImageSpec(16, 16, 1, "uint16", 0, 4095)))[1]


def test_open_stream_gives_images_of_any_kind(tmp_path: Path) -> None:
    values = RNG.normal(size=(8, 12, 16, 5)).astype(np.float32)
    pack(arrays(tmp_path / "in", values), str(tmp_path / "out"), PackOptions(channels=5, dtype="float32"), workers=1)
    wanted = {"batch": 4, "channels": 5, "dtype": "float32"}
    with open_stream(str(tmp_path / "out"), resolution=(12, 16), **wanted) as stream:
        batch = next(stream)
        np.testing.assert_array_equal(batch.images, values[batch.samples])
    for settings in ({"resolution": 0}, {"resolution": 8, "crop": "squeeze"}, {"resolution": 8, "channels": 40}):
        with pytest.raises(ConfigError):
            open_stream(str(tmp_path / "out"), **{**wanted, **settings})


@pytest.mark.parametrize(("middle", "half"), [(1013250, 1), (-1e6, 3), (0, 1e-9), (3, 1e9)])
def test_a_range_far_from_zero_is_said_by_its_own_width(middle: float, half: float, tmp_path: Path) -> None:
    """The setting that `pack` prints has nearly the quantiles' distance, whatever the size of the numbers."""
    values = middle + half * RNG.uniform(-1, 1, (20, 8, 8, 1))
    source = arrays(tmp_path / "in", values)
    summary = pack(source, str(tmp_path / "out"), PackOptions(channels=1, dtype="float32"), workers=1)
    found = re.search(r"data\.range=\[(\S+),(\S+)\]", "\n".join(report(summary, "out", 1)))
    assert found is not None
    low, high = map(float, found.groups())
    step = float(np.spacing(np.float32(abs(middle) + half)))
    assert 1.9 * half - step < high - low < 2 * half + 2 * step
    assert [low, high] == card(tmp_path / "out")["quantiles"]
    ImageSpec(8, 8, 1, "float32", low, high)  # accepts it


def test_numbers_in_a_deeper_type_are_no_mismatch() -> None:
    """A run may read numbers as a type that holds them all; what it would cut is named with the type that keeps it."""

    def said(stored: DType, run: DType) -> str:
        stored_as: dataset_card.Card = {"samples": 1, "resolution": 8, "channels": 1, "dtype": stored}
        return "; ".join(dataset_card.mismatches(stored_as, ImageSpec(8, 8, 1, run, 0, 1)))

    assert not said("uint16", "float32")
    assert said("uint16", "uint8").endswith("data.dtype is uint8: data.dtype=uint16 keeps them")
    assert said("float32", "uint16").endswith("data.dtype is uint16: data.dtype=float32 keeps them")
    assert "distgan pack --dtype float32" in said("uint8", "float32")


def test_a_card_names_width_and_height() -> None:
    assert ("size", "64x48 pixels") in dataset_card.facts({"height": 48, "width": 64})


@pytest.mark.parametrize(("bands", "found"), [(2, "1 channel"), (4, "3 channels")])
def test_alpha_without_a_channel_is_named_with_the_option(bands: int, found: str, tmp_path: Path) -> None:
    pixels = np.full((3, 8, 8, bands), 9, np.uint8)
    (tmp_path / "in").mkdir()
    for i, one in enumerate(pixels):
        (tmp_path / "in" / f"{i}.png").write_bytes(image_bytes(one))
    with pytest.raises(DataError, match=rf"{found} and alpha, --channels is {bands}: --alpha keeps it"):
        pack(str(tmp_path / "in"), str(tmp_path / "out"), PackOptions(channels=bands), workers=1)
    files = [(f"{i}.png", image_bytes(one)) for i, one in enumerate(pixels)]
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    data = Dataset([str(tmp_path / "0.tar")], ByteRangeReader(), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError) as error:
        pixel_report(data, DecodeOptions(ImageSpec(8, 8, bands)))
    assert str(error.value).endswith("data.alpha=channel keeps it")


@pytest.mark.parametrize("outlier", [1e30, 900.0, 20.0])
def test_a_range_by_few_far_values_is_a_choice(outlier: float, tmp_path: Path) -> None:
    values = RNG.uniform(0, 10, (40, 16, 16, 1)).astype(np.float32)
    values[0, 0, 0, 0] = outlier
    pack(arrays(tmp_path / "in", values), str(tmp_path / "out"), PackOptions(channels=1, dtype="float32"), workers=1)
    data = opened(tmp_path / "out")
    low, high = card(tmp_path / "out")["values"]
    if outlier == 20:  # the values fill half of it
        assert range_of_cards(data) == [low, high]
        return
    with pytest.raises(DataError, match="nearly one value of that range: choose") as error:
        range_of_cards(data)
    narrow, whole = re.findall(r"data\.range=\[([^,]+),([^\]]+)\]", str(error.value))
    np.testing.assert_allclose([float(value) for value in narrow], card(tmp_path / "out")["quantiles"], rtol=1e-4)
    np.testing.assert_allclose([float(value) for value in whole], [low, high], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("channels", "alpha"), [(1, False), (2, True), (3, False), (4, True), (4, False)])
def test_pack_and_generated_files_have_one_rule(channels: int, alpha: bool, dtype: DType) -> None:
    options = PackOptions(8, image="webp", channels=channels, dtype=dtype, alpha=alpha)
    suffix = image_file.suffix(options.spec, "webp")
    assert options.suffix == suffix
    pixels = RNG.integers(1, 200, (8, 8, channels)).astype(dtype)
    if alpha and dtype == "float32":
        pixels /= 200  # alpha is a share
    read = decode(image_file.to_bytes(pixels, options.spec, suffix), image=options.spec).pixels
    np.testing.assert_array_equal(read, pixels)
