"""From pictures to shards: labels, order, limits, byte-identical output, and a target that is never left half done."""

import builtins
import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from packing import Files, archive, folder, packed, png
from PIL import Image
from range_server import RangeServer
from shards import image_bytes, numbered_pixels, numbered_shard, tar_bytes, write_shards, zstd

from distgan.data import pack as module
from distgan.data import tar
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.encode import PackOptions
from distgan.data.index_cache import load
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions, all_entries
from distgan.data.pack_inputs import list_inputs
from distgan.data.pack_summary import report
from distgan.data.shard_index import build
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError, MachineError
from distgan.storage import atomic
from distgan.storage.byte_ranges import ByteRangeReader

FLAT = {f"{i}.png": png(i) for i in range(5)}
CLASSES = {f"{name}/{i}.png": png(10 * c + i) for c, name in enumerate(["ant", "bee", "cat"]) for i in range(c + 1)}
CLASSES_PACKED = [(0, 0), (10, 1), (11, 1), (20, 2), (21, 2), (22, 2)]


def contents(out: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def card(out: Path | str) -> dict:
    return json.loads((Path(out) / "dataset.json").read_text())


# Sources.


@pytest.mark.parametrize(
    "kind", ["folder", "zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "txz", "tar.zst", "tzst"]
)
def test_every_container_gives_the_same_samples(kind: str, tmp_path: Path) -> None:
    make = folder if kind == "folder" else archive
    summary = pack(make(tmp_path / f"pictures.{kind}", CLASSES), str(tmp_path / "out"), PackOptions())
    assert packed(tmp_path / "out") == CLASSES_PACKED
    assert summary.classes == ["ant", "bee", "cat"]
    assert summary.class_counts == [1, 2, 3]
    assert (summary.samples, summary.skipped) == (6, {})


FOLDERS = {
    "no folders": (FLAT, None, [(i, -1) for i in range(5)]),
    "one folder": ({f"all/{name}": data for name, data in FLAT.items()}, None, [(i, -1) for i in range(5)]),
    "classes in a folder": ({f"train/{n}": d for n, d in CLASSES.items()}, ["ant", "bee", "cat"], CLASSES_PACKED),
    "folders in classes": (
        {"a/x/1.png": png(1), "a/y/2.png": png(2), "b/x/3.png": png(3)},
        ["a", "b"],
        [(1, 0), (2, 0), (3, 1)],
    ),
    "numbers": (
        {f"{name}/1.png": png(name) for name in (10, 9, 100, 0)},
        ["0", "9", "10", "100"],
        [(0, 0), (10, 2), (100, 3), (9, 1)],
    ),
    "numbers in two ways": (
        {"1/a.png": png(1), "01/a.png": png(2), "001/a.png": png(3)},
        ["001", "01", "1"],
        [(3, 0), (2, 1), (1, 2)],
    ),
    "an image next to the classes": (FLAT | CLASSES, None, None),
    "hidden and foreign files": (
        CLASSES | {".DS_Store": b"x", "__MACOSX/._a.png": b"x", "cat/.cache.png": b"x", "ant/Thumbs.db": b"x"},
        ["ant", "bee", "cat"],
        CLASSES_PACKED,
    ),
    "uppercase suffixes": (
        {"a/1.PNG": png(1), "b/2.Png": png(2)},
        ["a", "b"],
        [(1, 0), (2, 1)],
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_classes(case: str, tmp_path: Path) -> None:
    files, classes, expected = FOLDERS[case]
    for make, name in ((folder, "folder"), (archive, "a.zip"), (archive, "a.tar")):
        out = tmp_path / f"out-{name}"
        summary = pack(make(tmp_path / name, files), str(out), PackOptions())
        assert summary.classes == classes
        assert card(out)["classes"] == classes
        if expected is None:
            assert {label for _, label in packed(out)} == {-1}
        else:
            assert sorted(packed(out)) == sorted(expected)


def test_a_folder_is_packed_in_the_order_of_its_names(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a/b.png", "B.png", "a.png"]
    source = folder(tmp_path / "in", {name: png(i) for i, name in enumerate(names)})
    pack(source, str(tmp_path / "out"), PackOptions())
    assert packed(tmp_path / "out") == [(names.index(name), -1) for name in sorted(names)]


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    pack(folder(tmp_path / "in", CLASSES), str(tmp_path / "out"), PackOptions(), ListingOptions(labels=False))
    assert packed(tmp_path / "out") == [(number, -1) for number, _ in CLASSES_PACKED]


@pytest.mark.parametrize("make", [folder, archive])
def test_labels_of_a_stylegan_data_set(make: Callable[[Path, Files], str], tmp_path: Path) -> None:
    files = {"00000/img0.png": png(0), "00000/img1.png": png(1), "00001/img2.png": png(2)}
    table = {"labels": [["00000/img1.png", 0], ["00000/img0.png", 6], ["00001/img2.png", 3]]}
    source = make(tmp_path / "in.zip", files | {"dataset.json": json.dumps(table).encode()})
    pack(source, str(tmp_path / "out"), PackOptions())
    assert packed(tmp_path / "out") == [(0, 6), (1, 0), (2, 3)]
    assert card(tmp_path / "out")["classes"] == [str(i) for i in range(7)]
    del table["labels"][0]
    source = make(tmp_path / "in2.zip", files | {"dataset.json": json.dumps(table).encode()})
    with pytest.raises(DataError, match=r"no label for 00000/img1\.png"):
        pack(source, str(tmp_path / "out2"), PackOptions())
    source = make(tmp_path / "in3.zip", files | {"dataset.json": b'{"labels": null}'})
    pack(source, str(tmp_path / "out3"), PackOptions())
    assert [label for _, label in packed(tmp_path / "out3")] == [-1, -1, -1]


def test_links_in_an_archive_are_counted(tmp_path: Path) -> None:
    """They hold no bytes of their own, so their pictures are left out; nothing is lost without a word."""
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as out:
            for i in range(2):
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(png(i))
                out.addfile(info, io.BytesIO(png(i)))
            link = tarfile.TarInfo("2.png")
            link.type, link.linkname = tarfile.LNKTYPE, "0.png"
            out.addfile(link)
        summary = pack(str(tmp_path / name), str(tmp_path / f"out-{name}"), PackOptions())
        assert summary.samples == 2
        assert summary.skipped == {"a link in the archive": 1}


# Arrays.

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def packed_pixels(out: Path) -> np.ndarray:
    samples = wds.WebDataset([str(path) for path in sorted(out.glob("*.tar"))], shardshuffle=False)
    return np.stack([np.asarray(Image.open(io.BytesIO(sample["png"]))) for sample in samples])


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("images", PIXELS, PIXELS),
        ("x_train", PIXELS.transpose(0, 3, 1, 2), PIXELS),
        ("arr_0", PIXELS[..., 0], np.repeat(PIXELS[..., :1], 3, 3)),
        ("data", PIXELS[..., :1], np.repeat(PIXELS[..., :1], 3, 3)),
        ("image", PIXELS[:, None, :, :, 0], np.repeat(PIXELS[..., :1], 3, 3)),
    ],
    ids=["NHWC", "NCHW", "NHW", "NHW1", "N1HW"],
)
def test_arrays_of_every_layout(name: str, array: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    pack(npz(tmp_path / "a.npz", **{name: array}), str(tmp_path / "out"), PackOptions())
    np.testing.assert_array_equal(packed_pixels(tmp_path / "out"), expected)


@pytest.mark.parametrize("labels", [np.array([0, 1, 2, 0, 1, 4]), np.array([[0], [1], [2], [0], [1], [4]], np.uint8)])
def test_arrays_with_labels(labels: np.ndarray, tmp_path: Path) -> None:
    summary = pack(npz(tmp_path / "a.npz", images=PIXELS, labels=labels), str(tmp_path / "out"), PackOptions())
    assert [label for _, label in packed(tmp_path / "out")] == [0, 1, 2, 0, 1, 4]
    assert summary.classes == ["0", "1", "2", "3", "4"]
    assert summary.class_counts == [2, 2, 1, 0, 1]
    names = np.array(list("abcde"))
    source = npz(tmp_path / "b.npz", images=PIXELS, labels=labels, classes=names)
    assert pack(source, str(tmp_path / "out2"), PackOptions()).classes == list("abcde")
    assert pack(source, str(tmp_path / "out3"), PackOptions(), ListingOptions(labels=False)).classes is None


BAD_ARRAYS = {
    "float": ({"images": PIXELS / 255.0}, "float pixels.*--range 0 1"),
    "pickle": ({"images": np.array([{"a": 1}, None, 2], object)}, "allow_pickle"),
    "no images": ({"weights": PIXELS.ravel()}, r"no image array .* only weights uint8\[1152\]"),
    "nothing": ({}, "only nothing"),
    "no image": ({"images": PIXELS[:0]}, "no usable image"),
    "no image with labels": ({"images": PIXELS[:0], "labels": np.zeros(0, int)}, "no usable image"),
    "channels": ({"images": np.zeros((2, 8, 8, 7), np.uint8)}, "7 channels"),
    "too few labels": ({"images": PIXELS, "labels": np.arange(5)}, "one for each image"),
    "one-hot labels": ({"images": PIXELS, "labels": np.eye(6, dtype=int)}, "one for each image"),
    "negative labels": ({"images": PIXELS, "labels": np.arange(6) - 1}, "from 0 on"),
    "float labels": ({"images": PIXELS, "labels": np.arange(6.0)}, "whole numbers"),
    "too few names": ({"images": PIXELS, "labels": np.arange(6), "classes": np.array(["a"])}, "only 1 class names"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_refused(case: str, tmp_path: Path) -> None:
    arrays, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message):
        pack(npz(tmp_path / "a.npz", **arrays), str(tmp_path / "out"), PackOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# Shards.


def test_shards_of_others_are_packed_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [5, 0, 4])
    for source in (tmp_path / "in", tmp_path / "in" / "{000..002}.tar"):
        out = tmp_path / f"out {source.name}"
        summary = pack(str(source), str(out), PackOptions(image="webp"))
        assert packed(out) == [(i, i % 7) for i in range(9)]
        assert summary.classes == [str(i) for i in range(7)]
    pack(str(tmp_path / "in" / "000.tar"), str(tmp_path / "one"), PackOptions())
    assert packed(tmp_path / "one") == [(i, i) for i in range(5)]


def test_class_names_survive_a_second_packing(tmp_path: Path) -> None:
    pack(folder(tmp_path / "in", CLASSES), str(tmp_path / "once"), PackOptions())
    pack(str(tmp_path / "once"), str(tmp_path / "twice"), PackOptions())
    assert card(tmp_path / "twice")["classes"] == ["ant", "bee", "cat"]
    assert packed(tmp_path / "twice") == CLASSES_PACKED


def test_damaged_shards_need_a_word(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "in", [5])
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: data.index(b"000003.cls")])
    with pytest.raises(DataError, match="corrupt"):
        pack(str(tmp_path / "in"), str(tmp_path / "out"), PackOptions())
    pack(str(tmp_path / "in"), str(tmp_path / "out"), PackOptions(), ListingOptions(allow_corrupt=True))
    assert [number for number, _ in packed(tmp_path / "out")] == [0, 1]  # 2 may lack parts: the cut came after it


# How pictures are stored.


def test_pixels_are_resized_once_by_the_stated_rule(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    source = folder(tmp_path / "in", {"a.png": image_bytes(pixels)})
    pack(source, str(tmp_path / "out"), PackOptions(resolution=8, filter="bicubic"))
    expected = np.asarray(Image.fromarray(pixels).crop((5, 0, 25, 20)).resize((8, 8), Image.BICUBIC))
    np.testing.assert_array_equal(packed_pixels(tmp_path / "out")[0], expected)
    pack(source, str(tmp_path / "out2"), PackOptions(resolution=8, filter="area", crop="stretch"))
    expected = np.asarray(Image.fromarray(pixels).resize((8, 8), Image.BOX))
    np.testing.assert_array_equal(packed_pixels(tmp_path / "out2")[0], expected)
    pack(source, str(tmp_path / "out3"), PackOptions())
    np.testing.assert_array_equal(packed_pixels(tmp_path / "out3")[0], pixels)


@pytest.mark.parametrize(("image", "format"), [("png", "PNG"), ("webp", "WEBP"), ("jpg", "JPEG")])
def test_image_parts(image: str, format: str, tmp_path: Path) -> None:
    pixels = np.asarray(Image.fromarray(PIXELS[0]).resize((64, 64), Image.BICUBIC))
    source = folder(tmp_path / "in", {"a.png": image_bytes(pixels)})
    sizes = []
    for quality in (50, 95):
        pack(source, str(tmp_path / "out"), PackOptions(image=image, quality=quality), overwrite=True)
        (sample,) = wds.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False)
        stored = Image.open(io.BytesIO(sample[image]))
        assert stored.format == format
        sizes.append(len(sample[image]))
        if image == "jpg":
            assert np.abs(np.asarray(stored).astype(int) - pixels).mean() < 8
        else:
            np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), pixels)
    assert (sizes[0] < sizes[1]) == (image == "jpg")
    assert ("quality" in card(tmp_path / "out")) == (image == "jpg")


def test_what_was_changed_and_skipped_is_counted(tmp_path: Path) -> None:
    transparent = image_bytes(np.zeros((16, 16, 4), np.uint8))
    deep = image_bytes(np.zeros((16, 16), np.uint16))
    files = CLASSES | {
        "ant/alpha.png": transparent,
        "ant/deep.png": deep,
        "ant/small.png": image_bytes(numbered_pixels(1, 4)),
        "bee/cut.png": png(1)[:60],
        "bee/empty.jpg": b"",
        "bee/large.png": image_bytes(np.zeros((100, 101, 3), np.uint8)),
        "bee/readme.txt": b"about bees",
        "bee/text.jpg": b"not an image",
        "orphan.txt": b"x",
    }
    summary = pack(folder(tmp_path / "in", files), str(tmp_path / "out"), PackOptions(resolution=16, max_pixels=10_000))
    assert summary.samples == len(CLASSES) + 3
    large = "more than --max-pixels 10000"
    assert summary.skipped == {"corrupt (OSError)": 1, "not an image": 3, "empty file": 1, large: 1}
    assert summary.notes == {"alpha": 1, "16 bit": 1, "enlarged": 1}
    assert summary.examples[large] == "bee/large.png"
    assert summary.class_counts == [4, 2, 3]
    told = card(tmp_path / "out")
    assert told["skipped"] == summary.skipped
    assert told["changed"] == summary.notes
    text = "\n".join(report(summary, "out", 3.0))
    for piece in (
        "9 images of 16x16 pixels in 1 shard",
        "3 classes with 2 to 4 images",
        "skipped 6: 3 not an image",
        "; each of them: out/skipped.jsonl\n",
        "\n3 images/s",
    ):
        assert piece in text


def skipped(out: Path) -> list[tuple[str, str]]:
    lines = (out / "skipped.jsonl").read_text().splitlines()
    return [(row["name"], row["reason"]) for row in map(json.loads, lines)]


def test_all_that_was_skipped_is_listed_with_its_reason(tmp_path: Path) -> None:
    source, out = Path(folder(tmp_path / "in", FLAT)), tmp_path / "out"
    pack(str(source), str(out), PackOptions())
    assert not (out / "skipped.jsonl").exists()
    for name in ("a.jpg", "b \u2028.jpg", "c.jpg"):
        (source / name).write_bytes(b"text" if name > "b" else b"")
    os.mkfifo(source / "pipe.png")
    pack(str(source), str(out), PackOptions(), overwrite=True)
    expected = [("pipe.png", "no regular file"), ("a.jpg", "empty file")]
    expected += [("b \u2028.jpg", "not an image"), ("c.jpg", "not an image")]
    assert skipped(out) == expected
    assert Dataset(find_shards(str(out)), ByteRangeReader()).num_samples == 5
    pack(str(out), str(out), PackOptions(), overwrite=True)  # replaces it as what it wrote, and packs the shards
    assert sorted(contents(out)) == ["000000.tar", "000000.tar.index", "dataset.json"]


def test_a_picture_without_a_label_is_skipped(tmp_path: Path) -> None:
    table = {"labels": [[name, None if name.startswith("bee") else 1] for name in CLASSES]}
    files = CLASSES | {"dataset.json": json.dumps(table).encode()}
    summary = pack(folder(tmp_path / "in", files), str(tmp_path / "out"), PackOptions())
    assert summary.skipped == {"without a label": 2}
    assert packed(tmp_path / "out") == [(0, 1), (20, 1), (21, 1), (22, 1)]


def test_pictures_too_large_for_a_format_are_skipped(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FLAT | {"long.png": image_bytes(np.zeros((1, 16384, 3), np.uint8))})
    summary = pack(source, str(tmp_path / "out"), PackOptions(image="webp"))
    assert summary.skipped == {"too large for webp": 1}
    assert summary.samples == 5


# Shards that are written.


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred noisy pictures in classes, two of them damaged: several shards of 64 KiB and several chunks of work."""
    rng, path = np.random.default_rng(2), tmp_path_factory.mktemp("many")
    files = {
        f"{i % 3}/{i:03d}.png": image_bytes(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)) for i in range(100)
    }
    files["1/040.png"] = files["1/040.png"][:100]
    files["2/041.png"] = b"text"
    return Path(folder(path, files))


def test_output_is_the_same_byte_for_byte(many: Path, tmp_path: Path) -> None:
    outputs = []
    for workers in (1, 1, 3):
        out = tmp_path / f"out{len(outputs)}"
        summary = pack(str(many), str(out), PackOptions(resolution=16), shard_mb=0.07, workers=workers)
        assert summary.samples == 98
        outputs.append(contents(out))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) > 5


def test_shards_keep_their_limit_and_waste_none(many: Path, tmp_path: Path) -> None:
    def sizes(limit: int) -> tuple[list[int], list[int]]:
        """Bytes and samples of each shard."""
        summary = pack(str(many), str(tmp_path / "out"), PackOptions(), shard_mb=limit / 1e6, workers=1, overwrite=True)
        return [shard["bytes"] for shard in summary.shards], [shard["samples"] for shard in summary.shards]

    sizes(10**9)
    first = build(str(tmp_path / "out" / "000000.tar"), ByteRangeReader()).first.astype(int)
    end = 1024  # the end marker takes room too
    assert sizes(int(first[40]) + end)[1] == [40, 40, 18]
    assert sizes(int(first[40]) + end - 1)[1][0] == 39
    for limit in (65_536, 100_000):
        assert max(sizes(limit)[0]) <= limit


def test_card_tells_the_truth(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = pack(str(many), str(out), PackOptions(resolution=16, filter="area"), shard_mb=0.07, workers=1)
    told = card(out)
    assert told["samples"] == sum(shard["samples"] for shard in told["shards"]) == 98
    assert told["classes"] == ["0", "1", "2"]
    assert told["class_counts"] == summary.class_counts
    assert (told["resolution"], told["filter"], told["crop"]) == (16, "area", "center")
    assert told["source"] == many.name
    assert [shard["name"] for shard in told["shards"]] == sorted(path.name for path in out.glob("*.tar"))
    for shard in told["shards"]:
        data = (out / shard["name"]).read_bytes()
        assert shard["bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
        assert shard["samples"] == len(build(str(out / shard["name"]), ByteRangeReader()).first)
    digests = "".join(shard["sha256"] for shard in told["shards"])
    assert told["digest"] == hashlib.sha256(digests.encode()).hexdigest()


def test_shards_are_as_webdataset_would_write_them(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(str(many), str(out), PackOptions(), workers=1)
    file = io.BytesIO()
    with wds.TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in wds.WebDataset(str(out / "000000.tar"), shardshuffle=False):
            writer.write({name: data for name, data in sample.items() if name != "__url__"})
    ours, theirs = (out / "000000.tar").read_bytes(), file.getvalue()
    with tarfile.open(fileobj=io.BytesIO(ours)) as a, tarfile.open(fileobj=io.BytesIO(theirs)) as b:
        assert [m.get_info() for m in a] == [m.get_info() for m in b]
    assert len(ours) <= len(theirs)


def test_output_is_read_by_the_data_set_with_the_index_beside(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = pack(str(many), str(out), PackOptions(), shard_mb=0.07, workers=1)
    for path in out.glob("*.tar"):
        assert load(str(path), ByteRangeReader(), tmp_path / "cache").to_bytes() == Path(f"{path}.index").read_bytes()
    data = Dataset(find_shards(str(out)), ByteRangeReader(), DatasetOptions(labels=True))
    assert data.num_samples == 98
    assert data.class_counts == summary.class_counts
    assert data.problems == []
    assert not (tmp_path / "cache").exists()


# Refusals.


def test_a_target_that_holds_something_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FLAT)
    (tmp_path / "empty").mkdir()
    pack(source, str(tmp_path / "empty"), PackOptions())
    assert len(packed(tmp_path / "empty")) == 5
    target = Path(folder(tmp_path / "out", {"precious.txt": b"x"}))
    with pytest.raises(ConfigError, match=r"not empty.*--overwrite"):
        pack(source, str(target), PackOptions())
    assert contents(target) == {"precious.txt": b"x"}
    with pytest.raises(ConfigError, match=r"holds 'precious\.txt', which `pack` did not write"):
        pack(source, str(target), PackOptions(), overwrite=True)
    assert contents(target) == {"precious.txt": b"x"}
    (target / "precious.txt").unlink()
    (target / "000001.tar").write_bytes(b"of an earlier packing")
    pack(source, str(target), PackOptions(), overwrite=True)
    assert sorted(contents(target)) == ["000000.tar", "000000.tar.index", "dataset.json"]
    with pytest.raises(ConfigError, match="is a file"):
        pack(source, str(target / "dataset.json"), PackOptions(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in", "out"]


def test_a_target_inside_the_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next packing would take what lies there for pictures."""
    source, other = folder(tmp_path / "in", FLAT), folder(tmp_path / "other", FLAT)
    (tmp_path / "link").symlink_to(source)
    for out, sources in (
        (f"{source}/out", (source,)),
        (f"{source}/a/b", (f"{tmp_path}/link",)),
        (f"{other}/out", (source, other)),
    ):
        with pytest.raises(ConfigError, match=f"{out} is inside {sources[-1]}.*choose a folder next to it"):
            pack(sources[0], out, PackOptions(), ListingOptions(degraded=sources[1] if len(sources) > 1 else ""))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["in", "link", "other"]
    monkeypatch.chdir(tmp_path)
    pack("in", "out", PackOptions())
    assert len(packed("out")) == 5


def test_a_data_set_can_replace_itself(tmp_path: Path) -> None:
    pack(folder(tmp_path / "in", CLASSES), str(tmp_path / "out"), PackOptions())
    pack(str(tmp_path / "out"), str(tmp_path / "out"), PackOptions(resolution=8), overwrite=True)
    assert packed(tmp_path / "out") == CLASSES_PACKED
    assert packed_pixels(tmp_path / "out").shape == (6, 8, 8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "left"}, "--crop 'left': choose one of center, stretch"),
        ({"filter": "nearest"}, "--filter 'nearest'"),
        ({"image": "gif"}, "--image 'gif'"),
        ({"resolution": -1}, "--resolution -1"),
        ({"resolution": 8193}, "--resolution 8193"),
        ({"quality": 0}, "--quality 0"),
        ({"background": 999}, "--background 999"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackOptions(**options)


@pytest.mark.parametrize(
    "options", [{"shard_mb": 0.01}, {"shard_mb": float("nan")}, {"shard_mb": float("inf")}, {"workers": -2}]
)
def test_a_shard_of_no_size_and_fewer_than_no_workers_are_refused(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--shard-mb|--workers"):
        pack(folder(tmp_path / "in", FLAT), str(tmp_path / "out"), PackOptions(), **options)


def test_what_can_be_read_without_an_end_is_left_out(tmp_path: Path) -> None:
    source = Path(folder(tmp_path / "in", FLAT))
    os.mkfifo(source / "pipe.png")
    (source / "device.png").symlink_to("/dev/zero")
    summary = pack(str(source), str(tmp_path / "out"), PackOptions())
    assert summary.skipped["no regular file"] == 2
    assert len(packed(tmp_path / "out")) == 5


GOOD_TAR = tar_bytes(FLAT)
BAD_SOURCES = {
    "nothing": ("none", None, "no such file or folder"),
    "an empty folder": ("in/", {}, "the folder is empty"),
    "no image": ("in", {"a.txt": b"text", "b.jpg": b"text"}, "no usable image among 2; 2 not an image"),
    "a single image": ("a.png", png(1), "neither a folder nor"),
    "an empty zip": ("a.zip", b"PK\5\6" + b"\0" * 18, "no usable image among 0$"),
    "a cut zip": ("a.zip", b"PK\3\4" + b"\0" * 500, "neither a folder nor"),
    "an empty tar file": ("a.tar", b"", "empty"),
    "a cut tar": ("a.tar", GOOD_TAR[:700], "cut"),
    "a tar without its end": ("a.tar", GOOD_TAR[:5120], "no end-of-archive"),
    "text named .tar": ("a.tar", b"text" * 1000, "tar header"),
    "gzip named .tar": ("a.tar", gzip.compress(GOOD_TAR), "gzip"),
    "text named .tar.gz": ("a.tar.gz", b"text" * 1000, "corrupt"),
    "text named .tar.xz": ("a.tar.xz", b"text" * 1000, "corrupt"),
    "text named .tar.bz2": ("a.tar.bz2", b"text" * 1000, "corrupt"),
    "text named .tar.zst": ("a.tar.zst", b"text" * 1000, "corrupt"),
    "gzip of text": ("a.tar.gz", gzip.compress(b"text" * 1000), "corrupt"),
    "text named .npz": ("a.npz", b"text" * 1000, r"a\.npz"),
    "an empty file named .npz": ("a.npz", b"", r"a\.npz"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_sources_are_told_in_one_line(name: str, tmp_path: Path) -> None:
    file, content, message = BAD_SOURCES[name]
    if isinstance(content, dict):
        (tmp_path / file).mkdir()
        folder(tmp_path / file, content)
    elif content is not None:
        (tmp_path / file).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message) as caught:
        pack(str(tmp_path / file), str(tmp_path / "out"), PackOptions())
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_npy_named_npz_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(DataError, match=r"a\.npz"):
        pack(str(tmp_path / "a.npz"), str(tmp_path / "out"), PackOptions())


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("cut", ["compressed", "tar", "tar at a border", "tar before its end"])
def test_cut_archives_lose_nothing_silently(kind: str, cut: str, tmp_path: Path) -> None:
    codec = {"gz": gzip, "bz2": bz2, "xz": lzma, "zst": zstd}[kind]
    rng = np.random.default_rng(0)  # pictures that do not compress, so that a cut comes anywhere
    files = {f"{i}.png": image_bytes(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)) for i in range(40)}
    whole = tar_bytes(files)
    if cut == "compressed":
        data = codec.compress(whole)
        pieces = [data[: len(data) * tenth // 10] for tenth in range(1, 10)]
    else:
        found = tar.members(whole, len(whole))
        ends = [header for _, _, header, _, _ in found]
        at = {"tar": ends[9] + 2000, "tar at a border": ends[9], "tar before its end": ends[-1] + 512 * 26}[cut]
        pieces = [codec.compress(whole[:at])]
    for piece in pieces:
        (tmp_path / f"a.tar.{kind}").write_bytes(piece)
        with pytest.raises(DataError, match=f"a.tar.{kind}: corrupt"):
            pack(str(tmp_path / f"a.tar.{kind}"), str(tmp_path / "out"), PackOptions())


def test_archives_compressed_in_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    """As pzstd, pigz, pixz and lbzip2 write them."""
    data = tar_bytes(CLASSES)
    for kind, codec in {"gz": gzip, "bz2": bz2, "xz": lzma, "zst": zstd}.items():
        path = tmp_path / f"a.tar.{kind}"
        path.write_bytes(b"".join(codec.compress(data[at : at + 1000]) for at in range(0, len(data), 1000)))
        pack(str(path), str(tmp_path / kind), PackOptions())
        assert packed(tmp_path / kind) == CLASSES_PACKED


def test_a_zip_with_a_damaged_directory_is_told(tmp_path: Path) -> None:
    path = Path(archive(tmp_path / "a.zip", CLASSES))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2")
    data[at : at + 4] = b"XXXX"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip"):
        pack(str(path), str(tmp_path / "out"), PackOptions())


def test_damaged_members_of_a_zip_are_counted(tmp_path: Path) -> None:
    path = Path(archive(tmp_path / "a.zip", FLAT))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 3] ^= 1  # the checksum of the member is wrong now
    path.write_bytes(data)
    summary = pack(str(path), str(tmp_path / "out"), PackOptions())
    assert summary.samples == 4
    ((reason, count),) = summary.skipped.items()
    assert "CRC" in reason
    assert count == 1


def test_an_unreadable_file_is_counted(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FLAT)
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    summary = pack(source, str(tmp_path / "out"), PackOptions())
    assert summary.skipped == {"unreadable (No such file or directory)": 1}


def test_folders_that_contain_themselves_are_walked_once(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", CLASSES)
    (tmp_path / "in" / "cat" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.png").write_bytes(png(30))
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "more")
    pack(source, str(tmp_path / "out"), PackOptions())
    assert packed(tmp_path / "out") == [*CLASSES_PACKED, (30, 3)]


def test_shards_from_a_server_keep_their_secrets(tmp_path: Path) -> None:
    with RangeServer({"/a.tar": numbered_shard(range(5), damaged=[3])}) as server:
        address = server.address.replace("//", "//user:SECRET@")
        summary = pack(f"{address}/a.tar?key=SECRET", str(tmp_path / "out"), PackOptions())
    assert packed(tmp_path / "out") == [(i, i) for i in (0, 1, 2, 4)]
    assert card(tmp_path / "out")["source"] == "a.tar"
    text = "\n".join(report(summary, "out", 1.0)) + (tmp_path / "out" / "dataset.json").read_text()
    assert "e.g. a.tar[3]" in text
    assert "SECRET" not in text


# A target is never left half done.


class FullDisk:
    """Lets so many bytes be written to files of a folder, then fails as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, marker: str, room: int):
        self.room = room
        real_open = builtins.open

        def opened(file: object, mode: str = "r", *arguments: object, **options: object):
            stream = real_open(file, mode, *arguments, **options)
            if marker in str(file) and ("x" in mode or "w" in mode):
                return _Full(stream, self)
            return stream

        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)


class _Full:
    def __init__(self, stream: io.IOBase, disk: FullDisk):
        self._stream, self._disk = stream, disk

    def write(self, data: bytes) -> int:
        self._disk.room -= len(data)
        if self._disk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._stream.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def __enter__(self) -> "_Full":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


@pytest.mark.parametrize("room", [0, 3000, 50_000, 265_000])
def test_a_full_disk_changes_nothing(room: int, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    pack(folder(tmp_path / "in", FLAT), str(out), PackOptions())
    before, names = contents(out), sorted(path.name for path in tmp_path.iterdir())
    FullDisk(monkeypatch, ".part/", room)
    with pytest.raises(MachineError, match="is full; nothing was changed"):
        pack(str(many), str(out), PackOptions(), shard_mb=0.07, workers=1, overwrite=True)
    monkeypatch.undo()
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("where", ["encode_all", "_finish", "_put_in_place"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_changes_nothing(
    where: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder(tmp_path / "in", FLAT), tmp_path / "out"
    pack(source, str(out), PackOptions())
    before = contents(out)

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, where, interrupted)
    with pytest.raises(error):
        pack(source, str(out), PackOptions(image="webp"), overwrite=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_old_output_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder(tmp_path / "in", FLAT), tmp_path / "out"
    pack(source, str(out), PackOptions())
    before, rename = contents(out), Path.rename

    def refused(self: Path, target: Path) -> Path:
        if "dataset.json" in os.listdir(self) and Path(target) == out and not self.name.endswith(".replaced"):
            raise PermissionError(errno.EPERM, "refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises((OSError, MachineError)):
        pack(source, str(out), PackOptions(image="webp"), overwrite=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_target_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="file"):
        pack(folder(tmp_path / "in", FLAT), str(tmp_path / "file" / "sub" / "out"), PackOptions())


def test_a_linked_target_is_replaced_where_it_lies(tmp_path: Path) -> None:
    """`out` may be a link to another disk: the shards go there, and the link stays."""
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    for image in ("png", "webp"):
        pack(folder(tmp_path / "in", FLAT), str(tmp_path / "out"), PackOptions(image=image), overwrite=True)
        assert (tmp_path / "out").is_symlink()
        assert card(tmp_path / "disk" / "out")["image"] == image
    assert os.listdir(tmp_path / "disk") == ["out"]


def test_a_killed_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures.process import BrokenProcessPool

    def killed(*_: object) -> None:
        raise BrokenProcessPool("killed")

    monkeypatch.setattr(module, "encode_all", killed)
    with pytest.raises(MachineError, match="--workers"):
        pack(folder(tmp_path / "in", FLAT), str(tmp_path / "out"), PackOptions(), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_image_is_stored_as_it_is_read_from_numbered_shards(tmp_path: Path) -> None:
    """The helper's shards and the packer's agree about pixels and labels."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(numbered_shard([300, 70_000]))
    pack(str(tmp_path / "in"), str(tmp_path / "out"), PackOptions())
    assert packed(tmp_path / "out") == [(300, 300 % 7), (70_000, 70_000 % 7)]


def test_pictures_that_are_kept_in_memory_take_half_of_it_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 32, 32, 3), np.uint8))
    assert len(all_entries(list_inputs(str(tmp_path / "a.npz")))) == 100
    monkeypatch.setattr(resource, "getrlimit", lambda which: (400_000, 400_000))  # bytes; the pictures take 307,200
    with pytest.raises(DataError, match="fill half of the memory"):
        all_entries(list_inputs(str(tmp_path / "a.npz")))


def test_large_pictures_come_out_in_order_however_they_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bounds that every chunk reaches, there and back, the shards are the same bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for number, one in enumerate(pixels):
            data = image_bytes(one)
            member = tarfile.TarInfo(f"{number:03d}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    pack(str(tmp_path / "a.tar.gz"), str(tmp_path / "plain"), PackOptions(), workers=1)
    for name, value in {"pack.CHUNK_BYTES": 500, "encode.CHUNK_BYTES": 500, "pack.UNDER_WAY": 1000}.items():
        monkeypatch.setattr(f"distgan.data.{name}", value)
    pack(str(tmp_path / "a.tar.gz"), str(tmp_path / "bounded"), PackOptions(), workers=1)
    one, other = ((tmp_path / folder / "000000.tar").read_bytes() for folder in ("plain", "bounded"))
    assert one == other


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_what_a_killed_pack_left_is_put_right_by_the_next(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, between or after its two renames: the old set is not lost, and nothing stays beside it."""
    source = folder(tmp_path / "in", {f"{i}.png": png(i) for i in range(3)})
    out, rename = tmp_path / "sets" / "out", Path.rename
    pack(source, str(out), PackOptions())
    old = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    pid = os.fork()
    if not pid:
        done: list[Path] = []

        def killed(path: Path, target: Path) -> Path:
            if len(done) == renames:
                os._exit(9)
            done.append(path)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", killed)
        monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: os._exit(9))
        pack(source, str(out), PackOptions(), overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    atomic._sweep_once.cache_clear()  # as in a process of its own
    with pytest.raises(ConfigError, match="is not empty"):  # as it would be had there been no kill
        pack(source, str(out), PackOptions())
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == old
    pack(source, str(out), PackOptions(), overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
