"""Labels from tables of rows, and images from parquet files, against what was written into them."""

import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packing import folder, packed, png

from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.data.pack_summary import PackSummary
from distgan.errors import ConfigError, DataError, MachineError

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
KINDS = ["cat", "dog", "eel"]


def table(suffix: str, rows: list[dict[str, object]]) -> bytes:
    if suffix == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    between = "\t" if suffix == "tsv" else ";" if suffix == "semicolons" else ","
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return b"\xef\xbb\xbf" + "\r\n".join(between.join(map(str, line)) for line in lines).encode()


def run(source: Path | str, out: Path, **wanted: object) -> PackSummary:
    return pack(str(source), str(out), PackOptions(), ListingOptions(**wanted), workers=1)


@pytest.mark.parametrize("named_by", ["{}", "pictures/{}", "./pictures/{}", "{}-stem"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "semicolons", "jsonl"])
@pytest.mark.parametrize("where", ["found", "named"])
def test_a_table_has_the_labels(where: str, suffix: str, named_by: str, tmp_path: Path) -> None:
    def name(i: int) -> str:
        return f"{i:03d}" if named_by.endswith("stem") else named_by.format(f"{i:03d}.png")

    rows = [{"file_name": name(i), "age": i, "label": KINDS[i % 3]} for i in range(9)]
    rows.append({"file_name": "not_there.png", "age": 1, "label": "fox"})
    files = {f"pictures/{i:03d}.png": png(i) for i in range(9)}
    kind = "csv" if suffix == "semicolons" else suffix
    file = tmp_path / f"other.{kind}"
    if where == "found":
        files[f"pictures/metadata.{kind}"] = table(suffix, rows)
        summary = run(folder(tmp_path / "in", files), tmp_path / "out")
    else:
        file.write_bytes(table(suffix, rows))
        summary = run(folder(tmp_path / "in", files), tmp_path / "out", table=str(file))
    assert packed(tmp_path / "out") == [(i, i % 3) for i in range(9)]
    assert summary.classes == KINDS
    assert not summary.skipped
    assert "column label" in summary.origin


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n0.png,cat, gray\n1.png,dog\n", "row 1 has 3 cells, and the header 2: put quotes"),
        ("file,label,age\n0.png,cat,3\n1.png,4\n", "row 2 has 2 cells, and the header 3"),
        ("file,label,label\n0.png,cat,dog\n1.png,dog,cat\n", "two columns are called label: rename one"),
    ],
)
def test_shifted_rows_and_columns_of_one_name_are_refused(tmp_path: Path, text: str, message: str) -> None:
    source, table = folder(tmp_path / "in", {f"{i}.png": png(i) for i in range(2)}), tmp_path / "t.csv"
    wanted = ListingOptions(table=str(table))
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1)
    table.write_text("file,label,\n0.png,cat,,\n\n1.png,dog,\n")  # cells without a word
    assert pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1).classes == ["cat", "dog"]


def test_a_table_in_an_archive_and_numbers_as_classes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(9):
            archive.writestr(f"x/{i}.png", png(i))
        rows = [{"image": f"{i}.png", "kind": 2 * (i % 3), "age": 10 * i} for i in range(9)]
        archive.writestr("x/labels.csv", table("csv", rows))
    summary = run(tmp_path / "a.zip", tmp_path / "out", labels_in="kind")
    assert summary.classes == ["0", "1", "2", "3", "4"]
    assert packed(tmp_path / "out") == [(i, 2 * (i % 3)) for i in range(9)]


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    files = {f"{kind}/{i}.png": png(3 * i + k) for k, kind in enumerate(KINDS) for i in range(2)}
    source = folder(tmp_path / "in", files | {"train.csv": b"epoch,loss\n1,0.5\n2,0.4\n"})
    summary = run(source, tmp_path / "out")  # a log of something: the folders are the classes
    assert summary.classes == KINDS
    assert any("not a table of labels: train.csv" in line for line in summary.assumed)
    cases: list[tuple[bytes, dict[str, object], str]] = [
        (b"file_name,kind\ncat/0.png,1\n", {"labels_in": "kinds"}, "no column kinds, only file_name, kind"),
        (b"file_name,label\ncat/0.png,1\n", {}, "no row for cat/1.png and 4 more"),
        (b"file_name,label\n0.png,1\n1.png,2\n", {}, "several images of the same name"),
        (b"file_name,label\n0.png,1\n0.png,2\n", {}, "two labels for 0.png"),
        (b"", {}, "t.csv has no rows"),
    ]
    for content, wanted, message in cases:
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            run(source, tmp_path / "no", table=str(tmp_path / "t.csv"), **wanted)
    with pytest.raises(DataError, match="No such file"):
        run(source, tmp_path / "no", table=str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="--labels kind"):
        run(source, tmp_path / "no", labels_in="kind")
    with pytest.raises(ConfigError, match="--images"):
        run(source, tmp_path / "no", images="x")
    with pytest.raises(ConfigError, match="--table"):
        ListingOptions(table="a.csv", labels=False)


# Parquet.


def parquet(path: Path, columns: dict[str, list], metadata: dict[str, object] | None = None) -> Path:
    import pyarrow
    import pyarrow.parquet

    made = pyarrow.table(columns)
    if metadata is not None:
        made = made.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(made, path, row_group_size=4)
    return path


def names(label: str, classes: list[str]) -> dict[str, object]:
    return {"info": {"features": {label: {"names": classes, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}


@needs_pyarrow
@pytest.mark.parametrize("form", ["struct", "binary"])
def test_an_export_of_hugging_face(form: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for part in range(2):
        numbers = range(5 * part, 5 * part + 5)
        cells = [{"bytes": png(i), "path": f"{i}.png"} if form == "struct" else png(i) for i in numbers]
        columns = {"image": cells, "label": [i % 3 for i in numbers], "text": ["x"] * 5}
        parquet(tmp_path / "in" / f"train-0000{part}-of-00002.parquet", columns, names("label", KINDS))
    summary = run(tmp_path / "in", tmp_path / "out")
    assert packed(tmp_path / "out") == [(i, i % 3) for i in range(10)]
    assert summary.classes == KINDS


@needs_pyarrow
def test_columns_are_found_or_named(tmp_path: Path) -> None:
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    one = parquet(tmp_path / "a.parquet", {"pixels": cells, "mask": cells, "kind": list("abab"), "n": [1, 2, 3, 4]})
    with pytest.raises(DataError, match="--images NAME"):
        run(one, tmp_path / "out")
    summary = run(one, tmp_path / "out", images="pixels", labels_in="kind")
    assert summary.classes == ["a", "b"]
    assert packed(tmp_path / "out") == [(i, i % 2) for i in range(4)]
    for wanted, message in (({"images": "n"}, "is int64"), ({"images": "pixels", "labels_in": "x"}, "no such column")):
        with pytest.raises(DataError, match=message):
            run(one, tmp_path / "no", **wanted)


@needs_pyarrow
def test_images_that_are_missing_are_listed(tmp_path: Path) -> None:
    cells = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "1.png"}, {"bytes": None, "path": "../x.png"}]
    (tmp_path / "1.png").write_bytes(png(1))
    summary = run(
        parquet(tmp_path / "a.parquet", {"image": [*cells, {"bytes": b"text", "path": ""}]}), tmp_path / "out"
    )
    assert packed(tmp_path / "out") == [(0, -1), (1, -1)]
    assert summary.skipped == {"empty file": 1, "not an image": 1}


@needs_pyarrow
def test_a_corrupt_parquet_file_is_named(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", {"image": [{"bytes": png(i), "path": ""} for i in range(4)]})
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet"):
        run(file, tmp_path / "out")


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(MachineError, match=r"distgan\[parquet\]"):
        run(tmp_path / "a.parquet", tmp_path / "out")


# TIFFs of many bands.


@pytest.mark.skipif(importlib.util.find_spec("tifffile") is None, reason="tifffile is not installed")
def test_a_folder_of_satellite_images(tmp_path: Path) -> None:
    import tifffile

    values = np.random.default_rng(0).integers(0, 4000, (6, 20, 28, 5)).astype(np.uint16)
    files = {}
    for i, one in enumerate(values):
        out = io.BytesIO()
        tifffile.imwrite(out, one, planarconfig="contig", photometric="minisblack", compression="zlib")
        files[f"{KINDS[i % 3]}/{i}.tif"] = out.getvalue()
    source = folder(tmp_path / "in", files)
    options = PackOptions(channels=5, dtype="uint16", range=(0, 4000))
    summary = pack(source, str(tmp_path / "out"), options, workers=1)
    assert summary.samples == 6
    assert summary.classes == KINDS
    with pytest.raises(DataError, match="6 with 5 channels, --channels is 3"):
        pack(source, str(tmp_path / "no"), PackOptions(), workers=1)
