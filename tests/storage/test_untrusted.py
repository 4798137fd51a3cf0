"""Files of others: what is a file, what is JSON, and what fits a schema."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import numbered_shard

from distgan.data.shard_index import ShardIndex, scan
from distgan.errors import DataError, MachineError
from distgan.storage.saved_state import SavedState, parse_manifest, require_resumable
from distgan.storage.untrusted import (
    MAX_DEPTH,
    MAX_LINE_BYTES,
    AtMost,
    Between,
    Like,
    json_of,
    open_to_append,
    parse,
    read,
    read_lines,
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["images", "layout", "stats"]), inner),
    max_leaves=12,
)


class Inner(TypedDict, total=False):
    items: list[float]


@dataclass
class Whole:
    count: Annotated[int, Between(0, 9)]
    name: Annotated[str, AtMost(3), Like("[a-z]*", "small letters")] = ""
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=dict)
    either: int | None = None
    width: int = field(default=1, metadata={"low": 1, "high": None})


def test_what_fits_is_built() -> None:
    found = parse(Whole, {"count": 3, "name": "ab", "inner": {"items": [1, 0.5], "other": 5}, "either": None}, "x")
    assert found == Whole(3, "ab", "a", {"items": [1, 0.5], "other": 5})


@pytest.mark.parametrize(
    "values, told",
    [
        ([], "x: got a list of 0, expected a mapping"),
        ({}, "x: count: got nothing, expected it to be there"),
        ({"count": True}, "x: count: got true, expected a whole number"),
        ({"count": 1.0}, "x: count: got 1.0, expected a whole number"),
        ({"count": 10}, "x: count: got 10, expected a number from 0 to 9"),
        ({"count": 1, "name": "abcd"}, 'x: name: got "abcd", expected at most 3 of them'),
        ({"count": 1, "name": "A"}, 'x: name: got "A", expected small letters'),
        ({"count": 1, "kind": "c"}, """x: kind: got "c", expected 'a' or 'b'"""),
        ({"count": 1, "kind": ["a"]}, "x: kind: got a list of 1, expected 'a' or 'b'"),
        ({"count": 1, "inner": {"items": [1, "y"]}}, 'x: inner.items[1]: got "y", expected a number'),
        ({"count": 1, "either": "y"}, 'x: either: got "y", expected null'),
        ({"count": 1, "width": 0}, "x: width: got 0, expected a number from 1 to inf"),
        ({"count": 1, "more": 0}, 'x: got "more", expected no other fields than count, name'),
    ],
)
def test_the_first_misfit_is_named(values: object, told: str) -> None:
    with pytest.raises(DataError) as refusal:
        parse(Whole, values, "x")
    assert str(refusal.value).startswith(told)


@given(ANY_JSON)
def test_any_value_fits_or_is_refused(value: object) -> None:
    for schema in (Whole, SavedState, dict[str, list[int]], int | str | None):
        try:
            parse(schema, value, "x")
        except DataError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
    for check in (parse_manifest, lambda found, where: require_resumable(parse(SavedState, found, where), where)):
        with pytest.raises(DataError):
            check(value, "x")


@pytest.mark.parametrize(
    "text, told",
    [
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "more than 64 levels"),
        ("[" * 10**6, "more than 64 levels"),
        ("9" * 101, "a number of 101 digits"),
        ("1e999", "1e999 is not a finite number"),
        ("NaN", "NaN is not a finite number"),
        ("{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
    ],
)
def test_json_is_bounded(text: str | bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        json_of(text, "x")


def test_json_as_deep_as_the_bound_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert str(json_of(text, "x")) == text
    assert json_of("[NaN, -Infinity]", "x", allow_nan=True)[1] == float("-inf")


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_json_or_refused(data: bytes | str) -> None:
    try:
        json_of(data, "x")
    except DataError as error:
        assert str(error).startswith("x: ")


@given(st.data())
def test_any_change_of_an_index_is_seen(data: st.DataObject) -> None:
    shard = numbered_shard(range(3))
    good = bytearray(scan(shard, len(shard)).to_bytes())
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"\w"):
        ShardIndex.from_bytes(bytes(good))


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    file, link, fifo = tmp_path / "file", tmp_path / "link", tmp_path / "fifo"
    file.write_bytes(b"12345")
    link.symlink_to(file)
    os.mkfifo(fifo)
    assert read(link, 5) == b"12345"
    refusals = {link: "a link, not a file of its own", fifo: "a fifo, not a regular file", tmp_path: "a folder, not"}
    for path, told in (refusals | {Path("/dev/zero"): "a device, not a regular file"}).items():
        with pytest.raises(DataError, match=told):
            read(path, 100, follow_links=False)
    with pytest.raises(DataError, match="5 bytes: no such file has more than 4"):
        read(file, 4)
    with pytest.raises(FileNotFoundError):
        read(file / "inside", 4)
    for path in (link, fifo, tmp_path):
        with pytest.raises(MachineError, match="remove it"):
            open_to_append(path)
    with open_to_append(file) as opened:
        opened.write("6")
    assert file.read_bytes() == b"123456"


def test_a_line_that_is_too_long_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"a\n" + b"b" * (2 * MAX_LINE_BYTES + 5) + b"\nc")
    assert [len(line) for line in read_lines(file)] == [2, MAX_LINE_BYTES, 1]
