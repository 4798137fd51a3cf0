"""Read the conditions of images from the columns of a table: numbers, flags, classes and lists of numbers."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np

from distgan.condition_spec import Conditions, Field, Kind
from distgan.data.find_labels import MAX_PART, beside_of, dataset_rows, is_table, most_bytes, part_value, whole
from distgan.data.label_tables import Row, is_row_table, match_rows, read_rows
from distgan.data.labels import File, number_order
from distgan.data.shard_index import MAX_CLASSES
from distgan.errors import ConfigError, DataError
from distgan.storage.array_file import parse_npy
from distgan.storage.untrusted import json_of

PART = "condition.npy"  # of a sample: float32 [R], NaN where unknown
FLAGS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
CLASS = "cls"  # the name by which the class that labels give becomes a condition


@dataclass
class ImageConditions:
    """The conditions of the images of a source.

    Attributes:
        fields: What there is, without statistics.
        of: Values of each image, float32 [R], by its number.
        assumed: What was left out or assumed.
    """

    fields: list[Field] = field(default_factory=list)
    of: dict[int, np.ndarray] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def check_columns(columns: Sequence[str]) -> None:
    """Refuse what `--condition` does not know. Raises ConfigError."""
    for column in columns:
        name, kind = split_column(column)
        if not name or any(mark in name for mark in "=,"):
            raise ConfigError(f"--condition {column!r}: name a column, without = and commas")
        if kind and kind not in get_args(Kind):
            raise ConfigError(f"--condition {column}: the kind {kind!r} is none of {', '.join(get_args(Kind))}")
    if len({split_column(column)[0] for column in columns}) < len(columns):
        raise ConfigError(f"--condition {' '.join(columns)}: a column is named twice")


def split_column(column: str) -> tuple[str, str]:
    """Return name and kind of "age:number"; the kind is empty where it is to be found from the values.

    Of a part next to the image, "json:age" or "clip.npy", the name is "age" or "clip".
    """
    if part := part_of_column(column):
        rest = column[len(part) :].removeprefix(":") if part == "json" else part.removesuffix(".npy")
        name, _, kind = rest.partition(":")
        return name, kind
    name, _, kind = column.partition(":")
    return name, kind


def part_of_column(column: str) -> str:
    """Return the suffix of the files next to images that hold a condition; empty for a column of a table."""
    if column.startswith("json:"):
        return "json"
    return column.lower() if column.lower() == "npy" or column.lower().endswith(".npy") else ""


def find_conditions(
    columns: Sequence[str], files: Sequence[File], image_numbers: Sequence[int], named: tuple[File, bytes] | None
) -> ImageConditions:
    """Return conditions from the table that was named, or from the only one that there is among the files.

    Raises:
        DataError: There is no such table, or one that does not fit.
    """
    columns = [column for column in columns if split_column(column)[0] != CLASS]
    if not columns:
        return ImageConditions()
    if any(map(part_of_column, columns)):
        if not all(map(part_of_column, columns)):
            raise DataError(f"--condition {' '.join(columns)}: from parts next to the images, or a table, not both")
        values = [_of_parts(column, files, image_numbers) for column in columns]
        return conditions_of(columns, values, image_numbers, "the parts next to the images")
    if named is not None:
        return read_conditions(*named, columns, files, image_numbers)
    tables = [file for file in files if is_row_table(file.name) or is_table(file.name)]
    if len(tables) != 1:
        found = f"several tables ({', '.join(file.name for file in tables)})" if tables else "no table"
        raise DataError(f"--condition {columns[0]}: there is {found} next to the images: --table FILE names one")
    return read_conditions(tables[0], whole(tables[0], most_bytes(len(image_numbers))), columns, files, image_numbers)


def _of_parts(column: str, files: Sequence[File], image_numbers: Sequence[int]) -> list[object]:
    """Return the value of each image in the file next to it; None where there is no file, or no such key in it."""
    part, name = part_of_column(column), split_column(column)[0]
    beside = beside_of(files, image_numbers, part)
    if not beside:
        raise DataError(f"--condition {column}: no image has a part .{part} next to it")

    def value(file: File) -> object:
        if part == "json":
            return part_value(file, name)
        try:
            return parse_npy(whole(file, MAX_PART)).ravel().tolist()
        except DataError as error:
            raise DataError(f"{file.name}: {error}") from None

    return [value(files[beside[number]]) if number in beside else None for number in image_numbers]


def read_conditions(
    table: File, content: bytes, columns: Sequence[str], files: Sequence[File], image_numbers: Sequence[int]
) -> ImageConditions:
    """Return the conditions of images by the rows of a table; of `dataset.json`, the only column is `label`.

    The rows name images from the top of the source, or from the table's folder.

    Args:
        columns: Names of columns, each with its kind after a colon, or without.

    Raises:
        DataError: It is no table, has no such column, no row for some image, or values of no use.
    """
    names = [split_column(column)[0] for column in columns]
    if is_table(table.name):
        rows: list[Row] = [{"file_name": name, "label": label} for name, label in dataset_rows(table, content) or ()]
        known, named = ["file_name", "label"], "file_name"
    else:
        rows, known, named = read_rows(table.name, content)
    if not rows:
        raise DataError(f"--condition {names[0]}: {table.name} has no rows: a row for each image has its conditions")
    if missing := [name for name in names if name not in known]:
        raise DataError(f"--condition {missing[0]}: no such column in {table.name}, only {', '.join(known[:20])}")
    images = [files[number].name for number in image_numbers]
    named_rows = [(str(row.get(named, "")), tuple(row.get(name) for name in names)) for row in rows]
    _, values, without = match_rows(table.name, named_rows, named, images)
    return replace(conditions_of(columns, list(zip(*values)), image_numbers, table.name), assumed=without)


def conditions_of(
    columns: Sequence[str], values: Sequence[Sequence[object]], image_numbers: Sequence[int], where: str
) -> ImageConditions:
    """Return conditions from the values of each column, one for each image. Raises DataError."""
    found = [_field(*split_column(column), of_column, where) for column, of_column in zip(columns, values)]
    rows = np.concatenate([numbers for _, numbers in found], axis=1)
    conditions = ImageConditions([one for one, _ in found], dict(zip(image_numbers, rows)))
    try:
        parts = Conditions(conditions.fields).split(rows)
    except ValueError as error:
        raise DataError(f"{where}: {error}: leave one out of --condition") from None
    for one, part in zip(conditions.fields, parts):
        known = part[~np.isnan(part).any(axis=1)]
        if not len(known):
            raise DataError(f"{where}: {one.name} is empty for all images: leave it out of --condition")
        if (known == known[0]).all():
            raise DataError(
                f"{where}: {one.name} is {one.text(known[0])} wherever it is known: leave it out of --condition"
            )
    return conditions


def _field(name: str, kind: str, values: Sequence[object], where: str) -> tuple[Field, np.ndarray]:
    """Return a field and its values, float32 [images, length]; its kind is found where none is given."""
    values = _lists(values, f"{where}: {name}")
    if any(isinstance(value, dict) for value in values):
        raise DataError(f"{where}: {name} holds objects of several values: name one as a column of its own")
    numbers = [_number(value) for value in values]
    if any(isinstance(value, list) for value in values):
        if kind not in ("", "vector"):
            raise DataError(f"{where}: {name} holds lists of numbers, which are no {kind}")
        return _vectors(name, values, where)
    texts = [value for value, number in zip(values, numbers) if number is None]
    words = {str(value).strip().lower() for value, number in zip(values, numbers) if not _is_unknown(number)}
    if kind == "class" or (texts and not kind and words <= FLAGS.keys()):
        return _classes(name, values, where)
    if texts and not kind:
        raise DataError(
            f"{where}: {name} is {str(texts[0])[:60]!r} somewhere and a number elsewhere: mend it, or name "
            f"{name}:class, which takes all values as names"
        )
    if texts:
        raise DataError(f"{where}: {name} is {str(texts[0])[:60]!r} somewhere: not a number")
    array = np.array(numbers, np.float64)
    if np.isinf(array).any() or (np.abs(array) > np.finfo(np.float32).max).any():
        raise DataError(f"{where}: {name} has values that are not finite, or beyond 3e38")
    distinct = set(array[~np.isnan(array)].tolist())
    if distinct and 0 < np.nanstd(array) < 8 * np.spacing(np.float32(max(map(abs, distinct)))):
        raise DataError(
            f"{where}: {name} has numbers between {min(distinct):.15g} and {max(distinct):.15g}, which differ by less "
            "than float32 tells apart: subtract a constant"
        )
    if kind in ("", "flag") and distinct <= {-1.0, 1.0} and -1.0 in distinct:  # as CelebA writes its attributes
        array, distinct = np.where(np.isnan(array), np.nan, array > 0), {0.0, 1.0}
    is_flag = distinct <= {0.0, 1.0}
    if kind == "flag" and not is_flag:
        raise DataError(f"{where}: {name} has other values than 0 and 1: {sorted(distinct - {0.0, 1.0})[:3]}")
    found: Kind = "flag" if is_flag and kind != "number" else "number"
    return Field(name, "vector" if kind == "vector" else found), array.astype(np.float32)[:, None]


def _lists(values: Sequence[object], where: str) -> Sequence[object]:
    """Return values with lists for texts such as "[0.5, -1]", as tables of text have them. Raises DataError."""
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    if not texts or not all(text.startswith("[") and text.endswith("]") for text in texts):
        return values
    return [json_of(value, where) if isinstance(value, str) and value.strip() else None for value in values]


def _is_unknown(number: float | None) -> bool:
    return number is None or math.isnan(number)


def _number(value: object) -> float | None:
    """Return a value as a number, NaN where it is missing; None for text that is none."""
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            return math.inf
    text = str(value).strip()
    if not text:
        return math.nan
    if text.lower() in FLAGS:
        return FLAGS[text.lower()]
    try:
        return float(text)
    except ValueError:
        return None


def _classes(name: str, values: Sequence[object], where: str) -> tuple[Field, np.ndarray]:
    texts = [None if value is None or not str(value).strip() else _class_name(value) for value in values]
    names = sorted({text for text in texts if text is not None}, key=number_order)
    if len(names) > MAX_CLASSES:
        raise DataError(f"{where}: {name}: {len(names):,} classes, at most {MAX_CLASSES:,}")
    number = {text: float(i) for i, text in enumerate(names)}
    numbers = [math.nan if text is None else number[text] for text in texts]
    return Field(name, "class", classes=names), np.array(numbers, np.float32)[:, None]


def _class_name(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _vectors(name: str, values: Sequence[object], where: str) -> tuple[Field, np.ndarray]:
    lengths = {len(value) for value in values if isinstance(value, list)}
    if len(lengths) > 1:
        raise DataError(
            f"{where}: {name} holds lists of {', '.join(map(str, sorted(lengths)[:5]))} numbers: one length"
        )
    length = lengths.pop()
    blank = [math.nan] * length
    if any(isinstance(number, (str, bool)) for value in values if isinstance(value, list) for number in value):
        raise DataError(f"{where}: {name} has lists of texts or flags, not of numbers")
    try:
        rows = [value if isinstance(value, list) else blank if value is None else [math.inf] for value in values]
        with np.errstate(over="ignore"):  # infinite then, which is refused
            array = np.array(rows, np.float32).reshape(len(values), length)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{where}: {name} holds more than lists of {length} numbers") from None
    if not length or np.isinf(array).any():
        raise DataError(f"{where}: {name} has lists without numbers, or with some that are not finite")
    return Field(name, "vector", length), array


def class_field(classes: Sequence[str] | None) -> Field:
    """Return the class that labels give as a condition. Raises DataError without classes."""
    if not classes or len(classes) < 2:
        raise DataError(f"--condition {CLASS}: the images have no classes, or one class: leave it out")
    return Field(CLASS, "class", classes=list(classes))


def to_bytes(values: Sequence[float]) -> bytes:
    """Return the part of a sample that holds its conditions."""
    out = io.BytesIO()
    np.save(out, np.array(values, "<f4"), allow_pickle=False)
    return out.getvalue()


class Statistics:
    """Counts, means and standard deviations of conditions, from one image after another."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._conditions = Conditions(fields)
        num = self._conditions.num_values
        self._first = np.full(num, np.nan)
        self._count, self._sum, self._squares = np.zeros(num, np.int64), np.zeros(num), np.zeros(num)
        self.num = 0

    def add(self, values: np.ndarray) -> None:
        """Count the values [R] of an image; a vector that lacks a number is unknown, as it is for networks."""
        parts = self._conditions.split(values)
        values = np.concatenate([np.full_like(part, np.nan) if np.isnan(part).any() else part for part in parts])
        known = ~np.isnan(values)
        self._first = np.where(np.isnan(self._first), values, self._first)
        # Around the first value, so that a large mean costs no digits.
        distance = np.where(known, values.astype(np.float64) - self._first, 0.0)
        self._count += known
        self._sum += distance
        self._squares += distance**2
        self.num += 1

    def fields(self) -> list[Field]:
        """Return the fields with their statistics."""
        count = np.maximum(1, self._count)
        mean = self._sum / count
        variance = np.maximum(0, self._squares / count - mean**2)
        mean += np.nan_to_num(self._first)
        means, variances, counts = (self._conditions.split(values) for values in (mean, variance, self._count))
        parts = zip(self._conditions.fields, means, variances, counts)
        return [_with_statistics(one, self.num, *of_field) for one, *of_field in parts]


def _with_statistics(one: Field, num: int, mean: np.ndarray, variance: np.ndarray, count: np.ndarray) -> Field:
    known = int(count.min())
    center, std = 0.0, 1.0
    if one.kind in ("number", "flag"):
        center = float(mean[0])
    if one.kind == "number":
        std = math.sqrt(variance[0])
    elif one.kind == "vector":
        std = math.sqrt(float((variance + mean**2).mean()))
    return replace(one, mean=center, std=std or 1.0, known=known, missing=num - known)
