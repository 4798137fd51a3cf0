"""Find where the class of each image is written: one rule for folders and archives.

What is asked for counts. Else the first of these that there is: a table (`dataset.json`), a `cls` part next to each
image, a table of rows such as `metadata.csv`, the folders, the archives. What was assumed is reported; what cannot be
used is refused.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from distgan.data.folder_labels import from_archives, from_folders, from_level
from distgan.data.label_tables import from_table, is_row_table
from distgan.data.labels import SAY_OTHERWISE, TABLE, File, Labels, as_classes, labels_of
from distgan.errors import ConfigError, DataError
from distgan.storage.untrusted import json_of

MAX_TABLE, MAX_ROW = 2**26, 2**10  # bytes of a table; where there are more images, of it for each of them
MAX_PART = 2**24  # bytes of the label next to an image


def whole(file: File, most: int) -> bytes:
    """Read a file that holds labels, which has `most` bytes at most; no more are read."""
    try:
        content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{file.name}: {error.strerror or error}") from None
    if len(content) > most:
        raise DataError(f"{file.name} has more than {most:,} bytes, too many for its labels: {SAY_OTHERWISE}")
    return content


def most_bytes(num_images: int) -> int:
    """Return how large a table of so many images may be."""
    return max(MAX_TABLE, MAX_ROW * num_images)


def check_spec(spec: str) -> None:
    """Refuse what `--label` does not know."""
    if spec and not re.fullmatch(r"folders(:[1-9]\d*)?|(?!folders:|table:|archives:)[\w.]*\w(:.+)?", spec):
        raise ConfigError(
            f"--label {spec!r}: folders, folders:LEVEL, archives, table, a part such as cls or txt, or a key of a JSON "
            "part such as json:label"
        )


def part_of(spec: str) -> str:
    """Return the suffix of the files next to the images that hold the labels."""
    part = spec.partition(":")[0].lower()
    return "" if part in ("table", "archives", "folders") else part or "cls"


def is_table(name: str) -> bool:
    """Return whether a file is a table of labels."""
    return name.rpartition("/")[2] == TABLE


def find_labels(
    files: Sequence[File],
    image_numbers: Sequence[int],
    spec: str = "",
    column: str = "",
    conditions: Collection[str] = (),
) -> Labels:
    """Return the classes of the images of a source, whose numbers among its files are given.

    Args:
        column: The one of a table of rows that has the labels; such a table must be there then.
        conditions: Columns of tables that are conditions, which are no labels unless `spec` or `column` asks for them.
    """
    tables = [number for number, file in enumerate(files) if is_table(file.name)]
    if not image_numbers:
        return Labels(used=set(tables))
    names = [files[number].name for number in image_numbers]
    refused: list[str] = []
    if column:
        labels = _from_rows(files, image_numbers, column, refused, conditions) or _no_table(column, refused)
    elif tables and not spec and "label" in conditions:
        labels = Labels(lacking=f"label of {TABLE} is a condition: --label table makes it the class, too")
    elif tables and spec in ("", "table"):
        labels = _from_tables(files, image_numbers, tables)
    elif spec == "table":
        raise DataError(f"--label table: there is no {TABLE}")
    elif part_of(spec) and (beside := beside_of(files, image_numbers, part_of(spec))):
        labels = _from_parts(files, image_numbers, beside, spec)
    elif spec and part_of(spec):
        raise DataError(f"--label {spec}: no image has a part of the same name with the suffix .{part_of(spec)}")
    elif spec == "archives":
        labels = from_archives([files[number].archive for number in image_numbers], image_numbers)
    elif spec:
        labels = from_level(names, image_numbers, int(spec.partition(":")[2] or 0) or None)
    elif rows := _from_rows(files, image_numbers, "", refused, conditions):
        labels = rows
    else:
        labels = from_folders(names, image_numbers)
        archives = [files[number].archive for number in image_numbers]
        if labels.classes is None and not labels.lacking and len(files) == len(image_numbers):
            labels = from_archives(archives, image_numbers, sure=False)
    labels.assumed += [f"not a table of labels: {reason}" for reason in refused]
    labels.used |= set(tables)
    return labels


def _from_tables(files: Sequence[File], image_numbers: Sequence[int], tables: Sequence[int]) -> Labels:
    """Read {"labels": [["00000/img00000000.png", 6], ...]}: names count from the table's folder, or the top."""
    values: dict[tuple[str, str], object] = {}
    without = ""
    for number in tables:
        table = files[number]
        rows = dataset_rows(table, whole(table, most_bytes(len(image_numbers))))
        if rows is None:
            without = table.name
            continue
        folder = table.name[: -len(TABLE)]
        for name, value in rows:
            key = table.archive, folder + name
            if values.setdefault(key, value) != value:
                raise DataError(f"{table.name} has two labels for {name}: {values[key]!r} and {value!r}")
            if folder:
                values.setdefault((table.archive, name), value)
    if not values:
        return Labels(
            lacking=f"{without or files[tables[0]].name} has none",
            assumed=[f"the folders are not classes, since there is a {TABLE}: {SAY_OTHERWISE}"],
        )
    keys = [(files[number].archive, files[number].name) for number in image_numbers]
    if missing := [name for key in keys if key not in values for name in key[1:]]:
        raise DataError(
            f"{files[tables[0]].name} has no label for {missing[0]} and {len(missing) - 1:,} more of "
            f"{len(image_numbers):,} images (null says that an image has none); {SAY_OTHERWISE}"
        )
    classes, numbers = as_classes([values[key] for key in keys], lambda i: f"{TABLE}: the label of {keys[i][1]}")
    if classes is None:
        return Labels(lacking=f"all are null in {TABLE}")
    return labels_of(classes, numbers, image_numbers, files[tables[0]].name)


def _from_rows(
    files: Sequence[File], image_numbers: Sequence[int], column: str, refused: list[str], conditions: Collection[str]
) -> Labels | None:
    """Read the labels from the only table of rows that has one for each image; None without such a table.

    Args:
        refused: Gets the reasons why tables are not used.
    """
    tables = [number for number, file in enumerate(files) if is_row_table(file.name)]
    found: list[Labels] = []
    for number in tables:
        try:
            content = whole(files[number], most_bytes(len(image_numbers)))
            found.append(from_table(files[number], content, column, files, image_numbers, conditions=conditions))
        except DataError as error:
            refused.append(str(error))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(files[number].name for number in tables)
        raise DataError(f"several tables may hold the labels ({names}): --table FILE names one")
    found[0].used = set(tables)
    return found[0]


def _no_table(column: str, refused: Sequence[str]) -> Labels:
    """Raise DataError for a column of a table that is not there."""
    raise DataError(f"--labels {column}: {'; '.join(refused) or 'there is no table: --table FILE names one'}")


def dataset_rows(table: File, data: bytes) -> list[tuple[str, object]] | None:
    """Return names and labels of a `dataset.json`; None where it says that there are none. Raises DataError."""
    try:
        content = json_of(data, table.name, allow_nan=True)
    except DataError as error:
        raise DataError(f"{error}: repair or remove it; {SAY_OTHERWISE}") from None
    rows = content.get("labels") if isinstance(content, dict) else content
    if not rows:
        return None
    rows = list(rows.items()) if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        raise DataError(f'{table.name}: "labels" is {str(rows)[:60]!r}, not a list of [name, label]; {SAY_OTHERWISE}')
    for row in rows:
        if not isinstance(row, (list, tuple)) or len(row) != 2 or not isinstance(row[0], str):
            raise DataError(f"{table.name}: {str(row)[:60]} is not [name, label]; {SAY_OTHERWISE}")
    return [(name.replace("\\", "/").removeprefix("./"), value) for name, value in rows]


def beside_of(files: Sequence[File], image_numbers: Sequence[int], part: str) -> dict[int, int]:
    """Return, for images that have it, the file of the same name, cut at a dot, with the suffix `part`."""
    ending = f".{part}"
    parts = {
        (file.archive, file.name[: -len(ending)]): number
        for number, file in enumerate(files)
        if file.name.lower().endswith(ending)
    }
    beside: dict[int, int] = {}
    for number in image_numbers if parts else ():
        stem = files[number].name
        while "." in stem.rpartition("/")[2]:
            stem = stem.rpartition(".")[0]
            if (files[number].archive, stem) in parts:
                beside[number] = parts[files[number].archive, stem]
                break
    return beside


def _from_parts(files: Sequence[File], image_numbers: Sequence[int], beside: dict[int, int], spec: str) -> Labels:
    """Read the label of each image from the file next to it."""
    part, _, key = spec.partition(":")
    part = part or "cls"
    labeled = list(beside)
    values = [part_value(files[beside[number]], key) for number in labeled]
    where = f" at {key}" if key else ""
    classes, numbers = as_classes(values, lambda i: f"{files[beside[labeled[i]]].name}: the label{where}")
    origin = f"the {part} parts" + (f", key {key}" if key else "")
    if classes is None:
        return Labels(lacking=f"{origin} have none", used=set(beside.values()), parts=True)
    labels = labels_of(classes, numbers, labeled, origin)
    labels.used, labels.parts = set(beside.values()), True
    if not spec and (without := [files[number].name for number in image_numbers if number not in beside]):
        reason = f"{len(without):,} of {len(image_numbers):,} images, such as {without[0]}, have no cls part"
        return Labels(lacking=f"{reason}; --label cls packs the others alone", used=labels.used, parts=True)
    if shared := len(beside) - len(labels.used):
        if spec == "":
            several: dict[int, int] = {}
            for number, holder in beside.items():
                if holder in several:
                    names = files[several[holder]].name, files[number].name
                    raise DataError(
                        f"samples have several image parts ({', '.join(names)}): name the one to pack, as "
                        f"--image-part {_suffix(names[1], files[holder].name)}"
                    )
                several[holder] = number
        labels.assumed.append(f"{shared:,} images share their label with another one of the same key")
    return labels


def _suffix(name: str, part: str) -> str:
    return name[len(part.rpartition(".")[0]) + 1 :]


def part_value(file: File, key: str) -> object:
    """Read a label file: a number or a name; of JSON, the value at the key, with dots between keys."""
    text = whole(file, MAX_PART).decode("utf-8", "replace").strip().strip("\ufeff\0")
    if key or file.name.lower().endswith(".json"):
        value = json_of(text, file.name)
        for name in key.split(".") if key else ():
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, dict):
            keys = ", ".join(list(value)[:10])
            raise DataError(f"{file.name}: name the key of the label, such as --label json:KEY, among {keys}")
        return value
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.startswith("["):
        try:
            return json_of(text, file.name)
        except DataError:
            return text
    return text


def left_out(files: Sequence[File], image_numbers: Sequence[int], used: set[int]) -> Iterator[tuple[str, int]]:
    """Yield the suffixes of parts that are neither images nor labels, and how many there are of each."""
    counts: dict[str, int] = {}
    used_or_image = used.union(image_numbers)
    for number, file in enumerate(files):
        if number not in used_or_image:
            suffix = file.name.rpartition("/")[2].partition(".")[2].lower()
            counts[suffix] = counts.get(suffix, 0) + 1
    yield from counts.items()
