"""Read the class of each image from a table next to the images: CSV, TSV or JSON lines, with a row for each image.

A row names its image by its path, its file name, or that without the suffix.
"""

import csv
import io
import re
from collections.abc import Collection, Container, Iterable, Sequence
from typing import TypeVar

from distgan.data.labels import File, Labels, as_classes, labels_of
from distgan.errors import DataError
from distgan.storage.untrusted import json_of

NAMES = ("file_name", "filename", "file", "path", "image_path", "image", "image_id", "img", "name", "id")  # of columns
LABELS = ("label", "labels", "class", "class_name", "category", "target", "y", "cls")
FOUND = re.compile(r"(metadata|labels|train|annotations)\.(csv|tsv|jsonl)", re.IGNORECASE)  # without being named


Row = dict[str, object]
T = TypeVar("T")


def is_row_table(name: str) -> bool:
    """Return whether a file is usually a table of labels."""
    return FOUND.fullmatch(name.rpartition("/")[2]) is not None


def from_table(
    table: File,
    content: bytes,
    column: str,
    files: Sequence[File],
    image_numbers: Sequence[int],
    *,
    conditions: Collection[str] = (),
    optional: bool = False,
) -> Labels:
    """Return the classes of images by a table's rows.

    Args:
        table: The table, for messages and for the folder from which names may count.
        column: The one that holds the labels; empty: the first of the usual names.
        conditions: Columns that are conditions, which are no labels unless `column` names them.
        optional: Whether there may be no labels in it.

    Raises:
        DataError: It is no table, or has no row for some image, or no label column.
    """
    rows, columns, named = read_rows(table.name, content)
    images = [files[number].name for number in image_numbers]
    only = columns[1] if len(columns) == 2 and columns[0] == named and columns[1] not in conditions else ""
    labeled = column or _column([name for name in columns if name not in conditions], LABELS) or only
    if optional and not labeled:
        return Labels(lacking=f"{table.name} has no column of labels that is found by its name")
    if not rows:
        raise DataError(f"{table.name} has no rows: a row for each image has its labels or conditions")
    if labeled not in columns:
        asked = f"no column {column}" if column else "no column of labels that is found by its name"
        raise DataError(f"{table.name}: {asked}, only {', '.join(columns[:20])}: --labels NAME says which one it is")
    named_rows = [(str(row.get(named, "")), row.get(labeled)) for row in rows]
    keys, values, without = match_rows(table.name, named_rows, named, images)
    classes, numbers = as_classes(_numbers(values), lambda i: f"{table.name}: the {labeled} of {keys[i]}")
    if classes is None:
        return Labels(lacking=f"all are empty in {table.name}")
    found = labels_of(classes, numbers, image_numbers, f"{table.name}, column {labeled}")
    found.assumed += without
    return found


def read_rows(name: str, content: bytes) -> tuple[list[Row], list[str], str]:
    """Return the rows of a table, the names of its columns, and the column that names images; "" without columns."""
    rows = _rows(name, content)
    columns = list(dict.fromkeys(column for row in rows[:1000] for column in row))
    return rows, columns, _column(columns, NAMES) or (columns[0] if columns else "")


def match_rows(
    table: str, named_values: Iterable[tuple[str, T]], column: str, images: Sequence[str]
) -> tuple[list[str], list[T], list[str]]:
    """Return the name by which a table knows each image, the image's value, and a note if rows have no image.

    Args:
        named_values: Names and values of the rows; names count from the top or from the table's folder.
        column: The one that names images, for messages.
        images: Paths of the images.

    Raises:
        DataError: An image has no row, or two with other values, or a row is of several images or names none.
    """
    values: dict[str, T] = {}
    for number, (written, value) in enumerate(named_values, 1):
        name = written.replace("\\", "/").removeprefix("./")
        if not name.strip():
            raise DataError(f"{table}: its column {column!r} is empty in row {number}: it should name an image")
        if values.setdefault(name, value) != value:
            raise DataError(f"{table} has two labels for {name}: {values[name]!r} and {value!r}")
    folder = table.rpartition("/")[0]
    found = [_key(image, folder, values) for image in images]
    keys = [key for key in found if key is not None]
    if missing := [image for image, key in zip(images, found) if key is None]:
        raise DataError(
            f"{table} has no row for {missing[0]} and {len(missing) - 1:,} more of {len(images):,} images "
            f"(its column {column} has {next(iter(values), 'nothing')} first)"
        )
    if len(set(keys)) < len(keys):
        raise DataError(f"{table}: several images of the same name in other folders: name them by their paths")
    others = values.keys() - set(keys)
    example = min(others, default="")
    without = [f"{len(others):,} row(s) of {table} have no image here (e.g. {example})"] if others else []
    return keys, [values[key] for key in keys], without


def _rows(name: str, content: bytes) -> list[Row]:
    """Return the rows of a table by its suffix: JSON lines, or text with a header."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}: line {line} is not UTF-8: save it as UTF-8, so that names stay as they are") from None
    if name.lower().endswith((".jsonl", ".ndjson")):
        rows = [json_of(line, f"{name}:{i + 1}") for i, line in enumerate(text.splitlines()) if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{name}: not a JSON object on each line")
        return rows  # type: ignore[return-value]  # as was checked
    first = text.partition("\n")[0]
    delimiter = max("\t,;", key=first.count)
    try:
        head, *cells = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row] or [[]]
    except csv.Error as error:
        raise DataError(f"{name}: {error}") from None
    if twice := [column for column in head if column and head.count(column) > 1]:
        raise DataError(f"{name}: two columns are called {twice[0]}: rename one")
    for number, row in enumerate(cells, 1):  # in a row that is shifted, cells would count for other columns
        if len(row) < len(head) or any(row[len(head) :]):
            raise DataError(
                f"{name}: row {number} has {len(row)} cells, and the header {len(head)}: put quotes around cells that "
                f"hold {delimiter!r}"
            )
    return [dict(zip(head, row)) for row in cells]


def _column(columns: Sequence[str], usual: Sequence[str]) -> str:
    """Return the first column that has one of the usual names, in their order."""
    by_name = {str(column).strip().lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in usual if name in by_name), "")


def _key(name: str, folder: str, values: Container[str]) -> str | None:
    """Return under which name a table has an image; None where it has none."""
    below = name.removeprefix(f"{folder}/") if folder else name
    parts = below.split("/")
    whole = ["/".join(parts[i:]) for i in range(len(parts))]
    return next((key for key in (name, *whole, *(path.rpartition(".")[0] for path in whole)) if key in values), None)


def _numbers(values: Sequence[object]) -> list[object]:
    """Return text as whole numbers where all of it is; empty text is no label."""
    texts = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    if not texts or not all(text.isdecimal() for text in texts):
        return list(values)
    return [(int(value) if value.strip() else None) if isinstance(value, str) else value for value in values]
