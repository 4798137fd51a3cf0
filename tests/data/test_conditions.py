"""Conditions from tables and arrays to batches: kinds, statistics, ranks, dropout, damage, refusals."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from packing import archive, folder, png
from shards import tar_bytes

from distgan.condition_spec import Conditions, Field
from distgan.data.condition_table import PART, Statistics, conditions_of, to_bytes
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.dataset_conditions import _joined
from distgan.data.decode import DecodeOptions
from distgan.data.encode import PackOptions
from distgan.data.label_tables import read_rows
from distgan.data.loader import Batch, Stream, StreamOptions
from distgan.data.open_shards import ALONE, RankInfo
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.data.pack_summary import PackSummary, report
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.errors import ConfigError, DataError
from distgan.image_spec import square
from distgan.storage.byte_ranges import ByteRangeReader

NUM = 24
KINDS = ["cat", "dog", "eel"]
AGES = [None if i % 6 == 5 else 20 + 3 * i for i in range(NUM)]
KNOWN_AGES = np.array([age for age in AGES if age is not None], np.float64)
MIXED = ("age", "smiling", "kind", "code")


def rows() -> list[dict[str, object]]:
    return [
        {
            "file_name": f"{i:03d}.png",
            "age": AGES[i],
            "smiling": bool(i % 2),
            "kind": KINDS[i % 3],
            "code": [i / 4, -1.0],
            "side": 2 * (i % 2) - 1,
            "digit": 3 + i % 3,
            "same": 7,
        }
        for i in range(NUM)
    ]


def packed(tmp_path: Path, columns: tuple[str, ...] = MIXED, **wanted: object) -> PackSummary:
    files = {f"{i:03d}.png": png(i) for i in range(NUM)}
    files["metadata.jsonl"] = "\n".join(map(json.dumps, rows())).encode()
    source = folder(tmp_path / "in", files)
    listing = ListingOptions(conditions=columns, **{"labels": False} | wanted)
    return pack(source, str(tmp_path / "out"), PackOptions(), listing, workers=1, overwrite=True)


def opened(path: Path | str, *names: str, dropout: float = 0.0, ranks: RankInfo = ALONE, **more: bool) -> Dataset:
    options = DatasetOptions(conditions=names or ("all",), dropout=dropout, **more)
    return Dataset(find_shards(str(path)), ByteRangeReader(), options, ranks)


def batches(data: Dataset, num: int, start: int = 0, ranks: RankInfo = ALONE, batch: int = 12) -> list[Batch]:
    plan = ShuffleOrder(data.counts, ShuffleLayout(24, 1, 4), seed=0)
    options = StreamOptions(batch, DecodeOptions(square(16)), max_corrupt_fraction=0.5)
    found = []
    with Stream(data, plan, options, start=start, ranks=ranks) as stream:
        for _ in range(num):
            taken = next(stream)
            found.append(
                Batch(taken.images.copy(), taken.labels, taken.positions, taken.samples, conditions=taken.given)
            )
    return found


def test_kinds_and_statistics_are_found_and_come_back(tmp_path: Path) -> None:
    summary = packed(tmp_path, (*MIXED, "side", "digit:class"))
    card = json.loads((tmp_path / "out" / "dataset.json").read_text())["conditions"]
    kinds = [(one["name"], one["kind"], one["length"], one["classes"]) for one in card]
    assert kinds == [
        ("age", "number", 1, []),
        ("smiling", "flag", 1, []),
        ("kind", "class", 1, KINDS),
        ("code", "vector", 2, []),
        ("side", "flag", 1, []),
        ("digit", "class", 1, ["3", "4", "5"]),
    ]
    age, smiling, _, code, *_ = card
    assert (age["mean"], age["std"]) == pytest.approx((KNOWN_AGES.mean(), KNOWN_AGES.std()), rel=1e-6)
    assert (age["known"], age["missing"], smiling["mean"]) == (20, 4, 0.5)
    assert code["std"] == pytest.approx(np.sqrt(np.mean([(i / 4) ** 2 / 2 + 0.5 for i in range(NUM)])), rel=1e-6)
    assert any("data.condition=[age,smiling,kind,code,side,digit]" in line for line in report(summary, "out", 1))

    data = opened(tmp_path / "out")
    assert data.conditions is not None
    assert [one.may_be_unknown for one in data.conditions.fields] == [True] + [False] * 5
    for i in range(NUM):
        age_now = np.nan if AGES[i] is None else AGES[i]
        expected = [age_now, i % 2, i % 3, i / 4, -1, i % 2, i % 3]
        np.testing.assert_array_equal(data.condition(i), np.array(expected, np.float32))


def test_a_run_takes_what_it_names_in_its_own_order(tmp_path: Path) -> None:
    packed(tmp_path)
    data = opened(tmp_path / "out", "kind", "age")
    assert data.conditions is not None and data.conditions.names == ["kind", "age"]
    assert data.condition(4).tolist() == [1, 32]
    with pytest.raises(DataError, match=r"data\.condition=size: the data set has no such condition, only age, smiling"):
        opened(tmp_path / "out", "size")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_batches_are_the_same_on_any_ranks_and_from_any_position(tmp_path: Path, dropout: float) -> None:
    packed(tmp_path)
    data = opened(tmp_path / "out", dropout=dropout)
    assert data.conditions is not None
    whole = batches(data, 40)
    if not dropout:
        for batch in whole[:4]:
            expected = data.conditions.encode(np.stack([data.condition(i) for i in batch.samples.tolist()]))
            np.testing.assert_array_equal(batch.given, expected)
    resumed = batches(data, 2, start=24)
    np.testing.assert_array_equal(resumed[1].given, whole[3].given)
    for rank in range(2):
        share = RankInfo(rank, 2)
        of_rank = batches(data, 3, ranks=share)
        for number, batch in enumerate(of_rank):
            np.testing.assert_array_equal(batch.given, whole[number].given[6 * rank : 6 * rank + 6])
    unknown = np.concatenate([batch.given[:, [3, 7, 10]] for batch in whole])  # of smiling, kind and code
    assert unknown.mean() == pytest.approx(dropout, abs=4 * np.sqrt(dropout / unknown.size))
    if dropout:  # each by itself
        assert abs(np.corrcoef(unknown.T)[0, 1]) < 0.2


def test_arrays_and_classes_become_conditions_and_are_packed_again(tmp_path: Path) -> None:
    images, labels = np.zeros((NUM, 16, 16), np.uint8), np.arange(NUM) % 3
    heat, code = np.linspace(270, 310, NUM), np.arange(2.0 * NUM).reshape(NUM, 2)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, heat=heat, code=code)
    wanted = ListingOptions(conditions=("heat", "code", "cls"))
    pack(str(tmp_path / "a.npz"), str(tmp_path / "one"), PackOptions(), wanted, workers=1)
    pack(str(tmp_path / "one"), str(tmp_path / "two"), PackOptions(), workers=1)
    for name in ("one", "two"):
        data = opened(tmp_path / name)
        assert data.conditions is not None and data.conditions.names == ["heat", "code", "cls"]
        expected = np.column_stack([heat, code, labels]).astype(np.float32)
        np.testing.assert_array_equal(np.stack([data.condition(i) for i in range(NUM)]), expected)
    cards = [json.loads((tmp_path / name / "dataset.json").read_text())["conditions"] for name in ("one", "two")]
    assert cards[0] == cards[1]


@pytest.mark.parametrize("kind", ["png", "npy"])
@pytest.mark.parametrize("whole", [True, False])
def test_conditions_without_classes_are_packed_again(tmp_path: Path, kind: str, whole: bool) -> None:
    images, heat = np.zeros((6, 16, 16), np.uint8 if kind == "png" else np.float32), np.arange(6.0)
    images[:, 0] = 1
    np.savez(tmp_path / "a.npz", images=images, heat=heat)
    wanted = ListingOptions(conditions=("heat",), labels=False, channels=1 if kind == "npy" else 3)
    options = PackOptions() if kind == "png" else PackOptions(channels=1, dtype="float32", range=(0, 1))
    pack(str(tmp_path / "a.npz"), str(tmp_path / "one"), options, wanted, workers=1)
    source = tmp_path / "one" if whole else tmp_path / "one" / "000000.tar"
    summary = pack(str(source), str(tmp_path / "two"), options, workers=1)
    assert summary.skipped == {}
    data = opened(tmp_path / "two")
    assert [data.condition(i).tolist() for i in range(6)] == [[i] for i in range(6)]


def test_lists_of_dataset_json_are_a_vector(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(6)}
    files["dataset.json"] = json.dumps({"labels": [[f"{i}.png", [i / 2, 1.5]] for i in range(6)]}).encode()
    wanted = ListingOptions(conditions=("label",), labels=False)
    pack(folder(tmp_path / "in", files), str(tmp_path / "out"), PackOptions(), wanted, workers=1)
    assert opened(tmp_path / "out").condition(3).tolist() == [1.5, 1.5]


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
def test_parts_next_to_images_are_conditions(tmp_path: Path, kind: str) -> None:
    files = {}
    for i in range(6):
        code = io.BytesIO()
        np.save(code, np.array([i, 0.5], np.float16))
        shown = {"age": 20 + i, "person": {"hair": KINDS[i % 3]}} if i else {"person": {}}
        files |= {f"{i}.png": png(i), f"{i}.json": json.dumps(shown).encode(), f"{i}.clip.npy": code.getvalue()}
    source = folder(tmp_path / "in", files)
    if kind != "folder":
        source = archive(tmp_path / f"shard.{kind}", files)
    wanted = ListingOptions(conditions=("json:age", "json:person.hair:class", "clip.npy"), labels=False)
    summary = pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1)
    assert (summary.samples, [one.name for one in summary.conditions]) == (6, ["age", "person.hair", "clip"])
    data = opened(tmp_path / "out")
    assert data.condition(4).tolist() == [24, 1, 4, 0.5]
    assert np.isnan(data.condition(0)).tolist() == [True, True, False, False]
    for column, message in (("json:size", "size is empty for all"), ("x.npy", "no image has a part .x.npy")):
        with pytest.raises(DataError, match=message):
            pack(source, str(tmp_path / "x"), PackOptions(), ListingOptions(conditions=(column,)), workers=1)


def test_statistics_of_several_folders_are_those_of_all(tmp_path: Path) -> None:
    heat = np.concatenate([np.full(10, 1.0) + np.arange(10), np.full(30, 100.0) + np.arange(30)])
    for name, part in (("a", heat[:10]), ("b", heat[10:])):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((len(part), 16, 16), np.uint8), heat=part)
        wanted = ListingOptions(conditions=("heat",), labels=False)
        pack(str(tmp_path / f"{name}.npz"), str(tmp_path / name), PackOptions(), wanted, workers=1)
    data = opened(f"{tmp_path}/{{a,b}}/000000.tar")
    assert data.conditions is not None
    (one,) = data.conditions.fields
    assert (one.mean, one.std, one.known) == pytest.approx((heat.mean(), heat.std(), 40), rel=1e-6)


def test_damaged_conditions_are_corrupt_samples(tmp_path: Path) -> None:
    """Other lengths, types and values are replaced by the next sample; a sample without them is an incomplete one."""
    packed(tmp_path, ("age", "kind"))
    short, double = io.BytesIO(), io.BytesIO()
    np.save(short, np.zeros(1, np.float32))
    np.save(double, np.zeros(2, np.float64))
    damaged = {1: short.getvalue(), 2: double.getvalue(), 3: to_bytes([1, 3]), 4: to_bytes([float("inf"), 1]), 5: b""}
    good = to_bytes([30, 2])
    parts = {}
    for i in range(NUM):
        parts |= {f"{i:03d}.png": png(i), f"{i:03d}.{PART}": damaged.get(i, good)}
    tar = tmp_path / "out" / "000000.tar"
    (tmp_path / "out" / "000000.tar.index").unlink()
    tar.write_bytes(tar_bytes(parts))
    data = opened(tmp_path / "out")
    with_all = batches(data, 4)
    samples = np.concatenate([batch.samples for batch in with_all])
    assert not set(samples.tolist()) & set(damaged)
    assert data.conditions is not None
    expected = data.conditions.encode(np.array([[30, 2]], np.float32))
    assert all((batch.given == expected).all() for batch in with_all)

    del parts[f"007.{PART}"]
    tar.write_bytes(tar_bytes(parts))
    with pytest.raises(DataError, match=r"1 sample\(s\) with no condition.npy part"):
        opened(tmp_path / "out")
    assert opened(tmp_path / "out", allow_corrupt=True).num_samples == NUM - 1


def test_what_pack_cannot_use_is_refused(tmp_path: Path) -> None:
    for columns, message in (
        (("size",), "no such column in metadata.jsonl, only file_name, age"),
        (("same",), "same is 7 wherever it is known"),
        (("kind:number",), "kind is 'cat' somewhere: not a number"),
        (("age:flag",), "age has other values than 0 and 1"),
        (("code:number",), "code holds lists of numbers, which are no number"),
        (("cls",), "no classes"),
    ):
        with pytest.raises(DataError, match=message):
            packed(tmp_path, columns)
    for columns, message in ((("age:old",), "the kind 'old' is none of"), (("age", "age:flag"), "named twice")):
        with pytest.raises(ConfigError, match=message):
            packed(tmp_path, columns)
    (tmp_path / "in" / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match="there is no table next to the images: --table FILE names one"):
        pack(str(tmp_path / "in"), str(tmp_path / "x"), PackOptions(), ListingOptions(conditions=("age",)), workers=1)


def test_rows_without_an_image_and_without_a_name_are_told(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {f"{i}.png": png(i) for i in range(4)})
    table = tmp_path / "t.csv"
    table.write_text("file,age\n" + "".join(f"{i}.png,{i}\n" for i in range(6)))
    wanted = ListingOptions(conditions=("age",), table=str(table), labels=False)
    summary = pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1)
    assert summary.assumed == ["2 row(s) of t.csv have no image here (e.g. 4.png)"]
    table.write_text("file,age\n0.png,1\n,2\n")
    with pytest.raises(DataError, match="its column 'file' is empty in row 2: it should name an image"):
        pack(source, str(tmp_path / "x"), PackOptions(), wanted, workers=1)
    for huge in (str(10**60), "1e39", "-inf"):
        with pytest.raises(DataError, match="not finite, or beyond 3e38"):
            of_column("1", huge)


def of_column(*values: object, kind: str = "") -> tuple[Field, list]:
    """The field of a column of a text table, and its values."""
    found = conditions_of([f"c:{kind}" if kind else "c"], [values], range(len(values)), "t.csv")
    return found.fields[0], [row.tolist() for row in found.of.values()]


def test_lists_in_a_text_table_are_vectors() -> None:
    one, values = of_column("[0.5, -1]", "", " [2,3] ")
    assert (one.kind, one.length) == ("vector", 2)
    np.testing.assert_array_equal(values, [[0.5, -1], [math.nan, math.nan], [2, 3]])
    for bad, message in (("[1, NaN]", "t.csv: c"), ("[1]", "lists of 1, 2 numbers"), ("[1, [2]]", "more than lists")):
        with pytest.raises(DataError, match=message):
            of_column("[0.5, -1]", bad)


def test_names_of_classes_may_have_any_character(tmp_path: Path) -> None:
    one, _ = of_column("two, words", "a=b", "x;y", "", "a=b")
    assert one.classes == ["a=b", "two, words", "x;y"]
    known = Conditions([Field("age", "number"), one])
    for i, name in enumerate(one.classes):
        assert known.values(f"c={name},age=4").tolist() == known.values(f"age=4,c={name}").tolist() == [4, i]
    with pytest.raises(ValueError, match="no condition 'agge'"):
        known.values("c=two, words,agge=4")


def test_a_text_among_numbers_is_asked_about() -> None:
    with pytest.raises(DataError, match="c is '4O' somewhere and a number elsewhere: mend it, or name c:class"):
        of_column("30", "4O", "50")
    assert of_column("30", "4O", "50", kind="class")[0].classes == ["4O", "30", "50"]
    assert of_column("yes", "no", "maybe")[0].classes == ["maybe", "no", "yes"]


def test_numbers_that_would_become_equal_are_refused() -> None:
    with pytest.raises(
        DataError, match="between 1700000000 and 1700000039, which differ by less than float32 tells apart"
    ):
        of_column(*(1_700_000_000 + i for i in range(40)))
    assert of_column(*(1_700_000_000 + 1000 * i for i in range(40)))[0].kind == "number"
    assert of_column(*np.random.default_rng(0).random(20_000))[0].kind == "number"  # some become equal, to no harm


def test_objects_and_lists_of_texts_are_no_conditions() -> None:
    with pytest.raises(DataError, match="c holds objects of several values"):
        of_column({"a": 0}, {"a": 1})
    for bad in (["3", "2"], [True, False]):
        with pytest.raises(DataError, match="c has lists of texts or flags"):
            of_column([1.0, 2.0], bad)
    with pytest.raises(DataError, match="not finite"):
        of_column([1.0, 2.0], [1e300, 0.0])


def test_shards_without_a_card_are_refused(tmp_path: Path) -> None:
    packed(tmp_path)
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(DataError, match="no card that describes conditions"):
        opened(tmp_path / "out")


@pytest.mark.parametrize("column", ["t", "label"])
@pytest.mark.parametrize("named", [False, True])
def test_a_column_of_conditions_is_no_label_unless_asked_for(named: bool, column: str, tmp_path: Path) -> None:
    """Neither the only column beside the names, nor one of a usual name; folders stay classes next to a found table."""
    text = f"file_name,{column}\n" + "".join(f"{'ab'[i % 2]}/{i}.png,{i / 2}\n" for i in range(6))
    files = {f"{'ab'[i % 2]}/{i}.png": png(i) for i in range(6)}
    table = tmp_path / "t.csv"
    table.write_text(text)
    source = folder(tmp_path / "in", files | ({} if named else {"metadata.csv": text.encode()}))
    for labels_in, classes in (
        ("", None if named else ["a", "b"]),
        (column, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
    ):
        wanted = ListingOptions(conditions=(column,), table=str(table) if named else "", labels_in=labels_in)
        found = pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1, overwrite=True)
        assert [one.name for one in found.conditions] == [column]
        assert found.classes == classes


def test_the_label_of_dataset_json_as_a_condition_is_no_class(tmp_path: Path) -> None:
    files = {f"00/{i}.png": png(i) for i in range(6)} | {f"01/{i}.png": png(i) for i in range(6, 12)}
    files["dataset.json"] = json.dumps({"labels": [[name, i] for i, name in enumerate(files)]}).encode()
    source = folder(tmp_path / "in", files)
    for label, num in (("", 0), ("table", 12)):
        wanted = ListingOptions(conditions=("label",), label=label)
        summary = pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1, overwrite=True)
        assert len(summary.classes or ()) == num
        assert [one.name for one in summary.conditions] == ["label"]


def test_a_table_of_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"0.png": png(0)})
    (tmp_path / "t.csv").write_text("file_name,t\n")
    for conditions in (("t",), ()):
        wanted = ListingOptions(conditions=conditions, table=str(tmp_path / "t.csv"))
        with pytest.raises(DataError, match=r"t\.csv has no rows"):
            pack(source, str(tmp_path / "out"), PackOptions(), wanted, workers=1)


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_an_array_or_a_column_of_conditions_is_no_label_unless_asked_for(kind: str, tmp_path: Path) -> None:
    """Also where it has a usual name of labels."""
    images, values = np.zeros((6, 4, 4, 3), np.uint8), np.arange(6)
    source = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(source, images=images, label=values)
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install 'distgan[parquet]')")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"image": [png(i) for i in range(6)], "label": values}), source)
    for labels_in, num in (("", 0), ("label", 6)):
        wanted = ListingOptions(conditions=("label",), labels_in=labels_in)
        summary = pack(str(source), str(tmp_path / "out"), PackOptions(), wanted, workers=1, overwrite=True)
        assert len(summary.classes or ()) == num
        assert [one.name for one in summary.conditions] == ["label"]


def test_statistics_of_vectors_are_those_of_the_ones_that_networks_see() -> None:
    rows = [[1.0, math.nan], [math.nan, 2.0], [100.0, math.nan], [3.0, 4.0], [5.0, 6.0]]
    statistics = Statistics([Field("v", "vector", 2)])
    for row in rows:
        statistics.add(np.array(row, np.float32))
    (found,) = statistics.fields()
    assert (found.known, found.missing) == (2, 3)
    assert found.std == pytest.approx(np.sqrt(np.mean(np.square([3, 4, 5, 6]))))


@pytest.mark.parametrize("kind", ["number", "flag"])
def test_a_set_where_a_condition_is_always_unknown_adds_nothing_to_its_statistics(kind: str) -> None:
    known = Field("a", kind, mean=0.5, std=0.25, known=3)
    joined = _joined([known, Field("a", kind, missing=5)])
    assert (joined.mean, joined.known, joined.missing) == (0.5, 3, 5)
    assert kind == "flag" or joined.std == 0.25


@pytest.mark.parametrize(
    "values",
    [[10**400, 1, 2], [[10**400, 1], [1, 2]], [f"c{i}" for i in range(70_000)]],
    ids=["number", "list", "classes"],
)
def test_values_that_are_too_large_or_too_many_are_refused(values: list) -> None:
    with pytest.raises(DataError, match=r"not finite|more than lists|at most"):
        conditions_of(["a"], [values], range(len(values)), "t.csv")


def test_tables_that_are_not_utf_8_are_refused_since_their_names_would_become_one() -> None:
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        read_rows("t.csv", "file,town\n1.png,Orl\u00e9\n2.png,Orl\u00e8\n".encode("latin1"))


@pytest.mark.parametrize("value", [10**400, {}, ["q", 2], [[1], [2, 3]]], ids=["huge", "mapping", "word", "ragged"])
def test_values_in_python_that_are_no_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"v=.*: not 2 numbers"):
        Conditions([Field("v", "vector", 2)]).values({"v": value})


@pytest.mark.parametrize("content", ["empty", "npz", "complex"])
def test_a_file_that_holds_no_vector_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "v.npy"
    with file.open("wb") as out:
        if content == "npz":
            np.savez(out, a=[1.0, 2.0])
        elif content == "complex":
            np.save(out, np.array([1 + 2j, 3]))
    with pytest.raises(ValueError, match="not 2 numbers"):
        Conditions([Field("v", "vector", 2)]).values(f"v={file}")
