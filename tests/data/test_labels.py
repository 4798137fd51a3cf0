"""Where `pack` finds the class of each picture: what is asked for, then a table, then parts, then folders."""

import gzip
import json
from pathlib import Path

import pytest
from packing import archive, folder, packed, png
from shards import tar_bytes

from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.data.pack_summary import report
from distgan.errors import ConfigError, DataError

STORED = {f"{i // 2:05d}/img{i:08d}.png": png(i) for i in range(4)}
NAMES = list(STORED)
TABLES = {
    "numbers": [[name, i % 2] for i, name in enumerate(NAMES)],
    "whole floats": [[name, float(i % 2)] for i, name in enumerate(NAMES)],
    "one-hot": [[name, [1.0 - i % 2, float(i % 2)]] for i, name in enumerate(NAMES)],
    "names": [[name, ["ant", "bee"][i % 2]] for i, name in enumerate(NAMES)],
    "mapping": {name: i % 2 for i, name in enumerate(NAMES)},
}
UNLABELLED = {"null": None, "empty": [], "all null": [[name, None] for name in NAMES]}
REFUSED = {
    "fractions": ([[name, 0.5] for name in NAMES], "0.5: labels must be whole numbers"),
    "soft": ([[name, [0.3, 0.7]] for name in NAMES], "one-hot row"),
    "several": ([[name, [1, 1]] for name in NAMES], "one-hot row"),
    "mixed": ([[name, ["a", 1][i % 2]] for i, name in enumerate(NAMES)], "all be of one kind"),
    "negative": ([[name, -1] for name in NAMES], "whole numbers"),
    "missing": ([[NAMES[0], 0]], "no label for .* 2 more of 4"),
    "twice": ([[NAMES[0], 0], [NAMES[0], 1]], "two labels"),
    "no list": (3, "not a list"),
}


def with_table(labels: object, above: str = "") -> dict[str, bytes]:
    files = STORED | {"dataset.json": json.dumps({"labels": labels}).encode()}
    return {above + name: data for name, data in files.items()}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("above", ["", "myset/"])
def test_a_table_is_found_wherever_it_lies(kind: str, above: str, tmp_path: Path) -> None:
    make = folder if kind == "folder" else archive
    for name, table in TABLES.items():
        summary = pack(make(tmp_path / f"{name}.{kind}", with_table(table, above)), str(tmp_path / name), PackOptions())
        assert sorted(packed(tmp_path / name)) == [(i, i % 2) for i in range(4)]
        assert summary.classes == (["ant", "bee"] if name == "names" else ["0", "1"])
        assert f"labels from {above}dataset.json: 2 classes" in "\n".join(report(summary, "out", 1.0))
    for name, table in UNLABELLED.items():
        summary = pack(make(tmp_path / f"{name}.{kind}", with_table(table, above)), str(tmp_path / name), PackOptions())
        assert summary.classes is None
        assert "no class labels: " in "\n".join(report(summary, "out", 1.0))


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_used_is_refused(case: str, tmp_path: Path) -> None:
    labels, message = REFUSED[case]
    source = archive(tmp_path / "a.zip", with_table(labels))
    with pytest.raises(DataError, match=message) as caught:
        pack(source, str(tmp_path / "out"), PackOptions())
    assert "--label" in str(caught.value) or case in ("twice", "mixed")
    assert pack(source, str(tmp_path / "folders"), PackOptions(), ListingOptions(label="folders")).classes == [
        "00000",
        "00001",
    ]


def test_a_table_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: not JSON"):
        pack(folder(tmp_path / "in", STORED | {"dataset.json": b"{labels"}), str(tmp_path / "out"), PackOptions())


SPLITS = {
    f"{split}/{name}/{i}.png": png(10 * c + 5 * s + i)
    for s, split in enumerate(["train", "val"])
    for c, name in enumerate(["cat", "dog"])
    for i in range(3 - s)
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_parts_of_a_data_set_are_no_classes(kind: str, tmp_path: Path) -> None:
    source = (folder if kind == "folder" else archive)(tmp_path / f"in.{kind}", SPLITS)
    summary = pack(source, str(tmp_path / "out"), PackOptions())
    assert summary.classes == ["cat", "dog"]
    assert summary.class_counts == [5, 5]
    assert all(label == number // 10 for number, label in packed(tmp_path / "out"))
    assert "train/ and val/ are parts of one data set" in "\n".join(report(summary, "out", 1.0))
    assert pack(source, str(tmp_path / "tops"), PackOptions(), ListingOptions(label="folders:1")).classes == [
        "train",
        "val",
    ]


@pytest.mark.parametrize("suffix", [".jfif", "", ".img", ".picture"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_a_picture_is_one_by_its_first_bytes(kind: str, suffix: str, tmp_path: Path) -> None:
    files = {f"{name}/{i}{suffix}": png(10 * c + i) for c, name in enumerate("ab") for i in range(2)}
    source = (folder if kind == "folder" else archive)(tmp_path / f"in.{kind}", files)
    assert pack(source, str(tmp_path / "out"), PackOptions()).classes == ["a", "b"]
    assert packed(tmp_path / "out") == [(0, 0), (1, 0), (10, 1), (11, 1)]


def test_pictures_beside_an_archive(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {f"{i}.png": png(i) for i in range(4)} | {"old.tar": tar_bytes({"9.png": png(9)})})
    summary = pack(source, str(tmp_path / "out"), PackOptions())
    assert [number for number, _ in packed(tmp_path / "out")] == [0, 1, 2, 3]
    assert summary.skipped == {"an archive next to images": 1}
    assert "name an archive itself" in "\n".join(report(summary, "out", 1.0))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_folder_of_archives(kind: str, tmp_path: Path) -> None:
    for c, name in enumerate(["ant", "bee"]):
        (tmp_path / "classes").mkdir(exist_ok=True)
        archive(tmp_path / "classes" / f"{name}.{kind}", {f"{i}.png": png(10 * c + i) for i in range(2)})
        (tmp_path / "shards").mkdir(exist_ok=True)
        files = {
            f"{c}{i}.{part}": data for i in range(2) for part, data in (("png", png(10 * c + i)), ("cls", b"%d" % c))
        }
        archive(tmp_path / "shards" / f"{c:03d}.{kind}", files)
    for source in ("classes", "shards"):
        summary = pack(str(tmp_path / source), str(tmp_path / f"{source}-out"), PackOptions())
        assert packed(tmp_path / f"{source}-out") == [(0, 0), (1, 0), (10, 1), (11, 1)]
        assert summary.classes == (["ant", "bee"] if source == "classes" else ["0", "1"])


@pytest.mark.parametrize("name", ["masks/{}.png", "images/{}_mask.png"])
def test_masks_beside_pictures_are_refused(name: str, tmp_path: Path) -> None:
    files = {f"images/{i}.png": png(i) for i in range(3)} | {name.format(i): png(50 + i) for i in range(3)}
    source = folder(tmp_path / "in", files)
    with pytest.raises(DataError, match="masks"):
        pack(source, str(tmp_path / "out"), PackOptions())
    assert pack(source, str(tmp_path / "all"), PackOptions(), ListingOptions(labels=False)).samples == 6


def samples(image: str, part: str, labels: list[bytes], key: str = "{}") -> list[dict[str, bytes]]:
    return [{f"{key.format(i)}.{image}": png(i), f"{key.format(i)}.{part}": label} for i, label in enumerate(labels)]


NUMBERS = [b"0", b"1", b"0", b"1"]
SHARDS = {
    "json": (samples("png", "json", [b'{"a": {"label": %s}}' % n for n in NUMBERS]), {"label": "json:a.label"}),
    "names": (samples("png", "cls", [[b"ant", b"bee"][int(n)] for n in NUMBERS]), {}),
    "img": (samples("img", "cls", NUMBERS), {"part": "img"}),
    "img untold": (samples("img", "cls", NUMBERS), {}),
    "image.png": (samples("image.png", "cls", NUMBERS), {}),
    "text": (samples("png", "label.txt", NUMBERS), {"label": "label.txt"}),
    "dots": (samples("png", "cls", NUMBERS, "scan_1.0.{}"), {}),
}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("order", ["neighbours", "labels last"])
@pytest.mark.parametrize("case", SHARDS)
def test_shards_of_others(case: str, order: str, kind: str, tmp_path: Path) -> None:
    pairs, options = SHARDS[case]
    files = {name: data for pair in pairs for name, data in pair.items()}
    if order == "labels last":
        files = dict(sorted(files.items(), key=lambda item: item[1][:4] != png(0)[:4]))
    data = tar_bytes(files)
    (tmp_path / f"a.{kind}").write_bytes(gzip.compress(data) if kind == "tar.gz" else data)
    pack(str(tmp_path / f"a.{kind}"), str(tmp_path / "out"), PackOptions(), ListingOptions(**options))
    assert packed(tmp_path / "out") == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_several_pictures_of_a_sample_need_a_word(tmp_path: Path) -> None:
    files = {
        f"{i}.{part}": data
        for i in range(2)
        for part, data in (("cls", b"1"), ("image.png", png(i)), ("mask.png", png(50)))
    }
    source = archive(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match="--image-part"):
        pack(source, str(tmp_path / "out"), PackOptions())
    pack(source, str(tmp_path / "out"), PackOptions(), ListingOptions(part="image.png"))
    assert packed(tmp_path / "out") == [(0, 1), (1, 1)]


def test_options_that_do_not_go(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"a/1.png": png(1), "b/2.png": png(2)})
    for label, labels in (("folders:0", True), ("folders", False)):
        with pytest.raises(ConfigError, match="--label"):
            pack(source, str(tmp_path / "out"), PackOptions(), ListingOptions(label=label, labels=labels))
    for label in ("table", "json:label", "archives"):
        with pytest.raises(DataError, match=f"--label {label}"):
            pack(source, str(tmp_path / "out"), PackOptions(), ListingOptions(label=label))
    with pytest.raises(DataError, match="--image-part img"):
        pack(source, str(tmp_path / "out"), PackOptions(), ListingOptions(part="img"))
