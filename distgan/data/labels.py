"""Where the class of an image is written: one rule for folders and archives.

What is asked for counts. Else the first of these that there is: a table (`dataset.json`), a `cls` part next to each
image, the folders, the archives. What was assumed is told; what cannot be used is refused.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from distgan.data.dataset import MAX_CLASSES
from distgan.errors import ConfigError, DataError
from distgan.storage.untrusted import json_of

TABLE = "dataset.json"
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "rgb"}
MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth"}
MASKS |= {"seg", "segs", "segmentation", "segmentations", "segmentationclass", "labelmap", "labelmaps"}
_MASK_ENDING = re.compile(r"[_.-](mask|masks|seg|segmentation|gt|label|labels|matte|trimap)$", re.IGNORECASE)
_STORAGE = re.compile(r"(?:.*/)?\d{5}/img\d{8}\.\w+")  # what NVIDIA's dataset_tool.py writes
MAX_TABLE, MAX_ROW = 2**26, 2**10  # bytes of a table; where there are more images, of it for each of them
MAX_CLASS_NAME = 1000  # characters
MAX_PART = 2**24  # bytes of the label next to an image
SAY_OTHERWISE = "`distgan pack --label folders` takes the folders as classes, --no-labels takes no labels"


@dataclass(frozen=True)
class File:
    """A file of a source: its path, so many of its first bytes, and the archive that holds it, without suffix."""

    name: str
    read: Callable[[int], bytes]
    archive: str = ""


@dataclass
class Labels:
    """The class of each image.

    Attributes:
        classes: Their names; None without labels.
        of: The class of each image, by its number; -1 for none.
        origin: Where they were found.
        lacking: Why there are none, where one might have expected some.
        assumed: What was assumed, and how to say otherwise.
        used: Numbers of the files that hold labels.
        parts: Whether each image has its label in a file next to it, as WebDataset stores a sample.
    """

    classes: list[str] | None = None
    of: dict[int, int] = field(default_factory=dict)
    origin: str = ""
    lacking: str = ""
    assumed: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    parts: bool = False


def whole(file: File, most: int) -> bytes:
    """All bytes of a file that holds labels, which are `most` at most; no more are read."""
    try:
        content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{file.name}: {error.strerror or error}") from None
    if len(content) > most:
        raise DataError(f"{file.name} has more than {most:,} bytes, too many for its labels: {SAY_OTHERWISE}")
    return content


def check_spec(spec: str) -> None:
    """Refuse what `--label` does not know."""
    if spec and not re.fullmatch(r"folders(:[1-9]\d*)?|(?!folders:|table:|archives:)[\w.]*\w(:.+)?", spec):
        raise ConfigError(
            f"--label {spec!r}: folders, folders:LEVEL, archives, table, a part such as cls or txt, or a key of a JSON "
            "part such as json:label"
        )


def part_of(spec: str) -> str:
    """The suffix of the files next to the images that hold the labels."""
    part = spec.partition(":")[0].lower()
    return "" if part in ("table", "archives", "folders") else part or "cls"


def is_table(name: str) -> bool:
    return name.rpartition("/")[2] == TABLE


def find_labels(files: Sequence[File], pictures: Sequence[int], spec: str = "") -> Labels:
    """The classes of the images of a source, whose numbers among its files are given; see the head of this file."""
    tables = [number for number, file in enumerate(files) if is_table(file.name)]
    if not pictures:
        return Labels(used=set(tables))
    names = [files[number].name for number in pictures]
    if spec in ("", "table") and tables:
        found = _from_tables(files, pictures, tables)
    elif spec == "table":
        raise DataError(f"--label table: there is no {TABLE}")
    elif part_of(spec) and (beside := _beside(files, pictures, part_of(spec))):
        found = _from_parts(files, pictures, beside, spec)
    elif spec and part_of(spec):
        raise DataError(f"--label {spec}: no image has a part of the same name with the suffix .{part_of(spec)}")
    elif spec == "archives":
        found = _from_archives([files[number].archive for number in pictures], pictures)
    elif spec:
        found = _at_level(names, pictures, int(spec.partition(":")[2] or 0) or None)
    else:
        found = _from_folders(names, pictures)
        archives = [files[number].archive for number in pictures]
        if found.classes is None and not found.lacking and len(files) == len(pictures):
            found = _from_archives(archives, pictures, sure=False)
    found.used |= set(tables)
    return found


def as_classes(values: Sequence[object], what: Callable[[int], str]) -> tuple[list[str] | None, list[int]]:
    """Names of the classes and the class of each value: whole numbers, one-hot rows or names; None is no label.

    Raises:
        DataError: for any other value, named by `what` of its place.
    """
    numbers: list[int] = []
    kinds: dict[str, int] = {}  # with the place where each was seen first
    names = {value.strip() for value in values if isinstance(value, str) and value.strip()}
    order = {name: i for i, name in enumerate(sorted(names, key=_by_number))}
    width = 0
    for place, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            numbers.append(-1)
        elif isinstance(value, str):
            if len(value) > MAX_CLASS_NAME:
                raise DataError(f"{what(place)} is a name of {len(value):,} characters: {SAY_OTHERWISE}")
            kinds.setdefault("a name", place)
            numbers.append(order[value.strip()])
        elif isinstance(value, (int, float)):
            if not (0 <= value < MAX_CLASSES and value == int(value)):
                raise DataError(
                    f"{what(place)} is {str(value)[:60]}: labels must be whole numbers from 0 to {MAX_CLASSES - 1:,}, "
                    "one-hot rows or names; --label chooses others, --no-labels does without"
                )
            kinds.setdefault("a number", place)
            numbers.append(int(value))
        elif (
            isinstance(value, list)
            and 0 < len(value) <= MAX_CLASSES
            and sorted(map(str, map(_number, value))) == ["0"] * (len(value) - 1) + ["1"]
        ):
            kinds.setdefault(f"a row of {len(value)}", place)
            width = len(value)
            numbers.append([_number(x) for x in value].index(1))
        else:
            raise DataError(
                f"{what(place)} is {str(value)[:60]}: a class is a whole number, a name or a one-hot row (a single 1, "
                "else 0); --label chooses others, --no-labels does without"
            )
    if len(kinds) > 1:
        (one, at), (other, there), *_ = kinds.items()
        raise DataError(f"{what(at)} is {one}, {what(there)} is {other}: labels must all be of one kind")
    if not kinds:
        return None, numbers
    return list(order) if order else [str(i) for i in range(max(width, max(numbers) + 1))], numbers


def _number(value: object) -> object:
    """1.0 and True as 1, so that rows compare."""
    return int(value) if isinstance(value, (int, float)) and value in (0, 1) else value


def _by_number(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() and len(name) <= MAX_CLASS_NAME else -1, name)


def _made(classes: list[str] | None, numbers: Iterable[int], pictures: Sequence[int], origin: str) -> Labels:
    return Labels(classes, dict(zip(pictures, numbers)), origin) if classes else Labels()


# A table.


def _from_tables(files: Sequence[File], pictures: Sequence[int], tables: Sequence[int]) -> Labels:
    """{"labels": [["00000/img00000000.png", 6], ...]}: names count from the folder of the table, or from the top."""
    values: dict[tuple[str, str], object] = {}
    without = ""
    for number in tables:
        table, rows = files[number], _rows(files[number], max(MAX_TABLE, MAX_ROW * len(pictures)))
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
    keys = [(files[number].archive, files[number].name) for number in pictures]
    if missing := [name for key in keys if key not in values for name in key[1:]]:
        raise DataError(
            f"{files[tables[0]].name} has no label for {missing[0]} and {len(missing) - 1:,} more of "
            f"{len(pictures):,} images (null says that an image has none); {SAY_OTHERWISE}"
        )
    classes, numbers = as_classes([values[key] for key in keys], lambda i: f"{TABLE}: the label of {keys[i][1]}")
    if classes is None:
        return Labels(lacking=f"all are null in {TABLE}")
    return _made(classes, numbers, pictures, files[tables[0]].name)


def _rows(table: File, most: int) -> list[tuple[str, object]] | None:
    """Names and labels of a table; None where it says that there are none."""
    try:
        content = json_of(whole(table, most), table.name, allow_nan=True)
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


# Parts next to the images.


def _beside(files: Sequence[File], pictures: Sequence[int], part: str) -> dict[int, int]:
    """For images that have it, the file of the same name, cut at one of its dots, with the suffix `part`."""
    ending = f".{part}"
    parts = {
        (file.archive, file.name[: -len(ending)]): number
        for number, file in enumerate(files)
        if file.name.lower().endswith(ending)
    }
    found = {}
    for number in pictures if parts else ():
        stem = files[number].name
        while "." in stem.rpartition("/")[2]:
            stem = stem.rpartition(".")[0]
            if (files[number].archive, stem) in parts:
                found[number] = parts[files[number].archive, stem]
                break
    return found


def _from_parts(files: Sequence[File], pictures: Sequence[int], beside: dict[int, int], spec: str) -> Labels:
    part, _, key = spec.partition(":")
    part = part or "cls"
    labelled = list(beside)
    values = [_value(files[beside[number]], key) for number in labelled]
    key_told = f" at {key}" if key else ""
    classes, numbers = as_classes(values, lambda i: f"{files[beside[labelled[i]]].name}: the label{key_told}")
    origin = f"the {part} parts" + (f", key {key}" if key else "")
    if classes is None:
        return Labels(lacking=f"{origin} have none", used=set(beside.values()), parts=True)
    found = _made(classes, numbers, labelled, origin)
    found.used, found.parts = set(beside.values()), True
    if not spec and (lacks := [files[number].name for number in pictures if number not in beside]):
        told = f"{len(lacks):,} of {len(pictures):,} images, such as {lacks[0]}, have no cls part"
        return Labels(lacking=f"{told}; --label cls packs the others alone", used=found.used, parts=True)
    if shared := len(beside) - len(found.used):
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
        found.assumed.append(f"{shared:,} images share their label with another one of the same key")
    return found


def _suffix(name: str, part: str) -> str:
    return name[len(part.rpartition(".")[0]) + 1 :]


def _value(file: File, key: str) -> object:
    """What a label file holds: a number or a name; of JSON, what stands at the key, with dots between keys."""
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


# Folders and archives.


def _split(names: Sequence[str]) -> tuple[list[list[str]], int]:
    """The folders of each name, and how many of them all have in common."""
    folders = [name.split("/")[:-1] for name in names]
    return folders, len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it takes whole elements)


def _from_folders(names: Sequence[str], pictures: Sequence[int]) -> Labels:
    """A class is a folder: the first one in which the paths of the images differ, below train/ and val/."""
    _refuse_masks(names)
    folders, depth = _split(names)
    if all(map(_STORAGE.fullmatch, names)):
        return Labels(lacking=f"folders such as {folders[0][-1]}/ only store images, and there is no {TABLE}")
    tops = {folder[depth] for folder in folders if len(folder) > depth}
    if len(tops) > 1 and {top.lower() for top in tops} <= SPLITS:
        told = " and ".join(f"{top}/" for top in sorted(tops))
        found = _at_level(names, pictures, depth + 2, found_below=told)
        found.assumed.append(
            f"{told} are parts of one data set, not classes, and all are packed: name one of them as the source to "
            f"pack it alone; --label folders:{depth + 1} takes them as classes"
        )
        return found
    return _at_level(names, pictures, None)


def _at_level(names: Sequence[str], pictures: Sequence[int], level: int | None, found_below: str = "") -> Labels:
    """The folder at a level, 1 at the top, is the class; None: the first at which the paths differ."""
    folders, depth = _split(names)
    at = depth if level is None else level - 1
    outside = [name for name, folder in zip(names, folders) if len(folder) <= at]
    if outside:
        some = len(outside) < len(names) or found_below or level is not None
        told = f"{len(outside):,} image(s), such as {outside[0]}, are in no class folder"
        return Labels(lacking=f"{told}: remove them, or name a folder of classes as the source" if some else "")
    classes = sorted({folder[at] for folder in folders}, key=_by_number)
    number = {name: i for i, name in enumerate(classes)}
    where = f"the folders below {found_below}" if found_below else "the folders"
    if level is None and at:
        where += f" in {'/'.join(folders[0][:at])}/"
    elif level is not None and not found_below:
        where += f" at level {level}"
    return _made(classes, (number[folder[at]] for folder in folders), pictures, where)


def _refuse_masks(names: Sequence[str]) -> None:
    """Images next to their masks are no two classes, and a mask is no image to learn from."""
    inside: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        parts = folder.split("/")
        for depth, part in enumerate(parts):
            inside.setdefault("/".join(parts[:depth]), set()).add(part)
    for above, found in inside.items():
        masks, images = ([part for part in sorted(found) if part.lower() in words] for words in (MASKS, IMAGES))
        if masks and images:
            before = f"{above}/" if above else ""
            raise DataError(
                f"{before}{images[0]} and {before}{masks[0]} look like images and their masks, not like classes: "
                f"name the folder of the images alone as the source; or, to pack all: {SAY_OTHERWISE}"
            )
    stems = {name.rpartition(".")[0] or name for name in names}
    masks = [stem for stem in stems if (cut := _MASK_ENDING.sub("", stem)) != stem and cut in stems]
    if masks and 3 * len(masks) >= len(stems):
        raise DataError(
            f"{len(masks):,} of {len(stems):,} images look like masks of others, such as {min(masks)}: move them "
            f"away; or, to pack all: {SAY_OTHERWISE}"
        )


def _from_archives(archives: Sequence[str], pictures: Sequence[int], sure: bool = True) -> Labels:
    """Each archive is a class, unless their names look like those of shards."""
    classes = sorted(set(archives), key=_by_number)
    if classes == [""] or (len(classes) < 2 and not sure):
        if sure:
            raise DataError("--label archives: the source is not a folder of archives")
        return Labels()
    bare = [os.path.basename(name) for name in classes]
    if not sure and len({re.sub(r"\d+", "", name) for name in bare}) == 1:
        return Labels(
            lacking="the names of the archives differ in numbers alone, as those of shards do: --label archives takes "
            "each archive as a class"
        )
    if not sure and {name.lower() for name in bare} <= SPLITS:
        return Labels(lacking="the archives are named as parts of a data set, not as classes")
    number = {name: i for i, name in enumerate(classes)}
    found = _made(
        bare if len(set(bare)) == len(bare) else classes,
        (number[name] for name in archives),
        pictures,
        "the names of the archives",
    )
    if not sure:
        found.assumed.append("each archive is a class, since they hold nothing but images: --no-labels says otherwise")
    return found


def left_out(files: Sequence[File], pictures: Sequence[int], used: set[int]) -> Iterator[tuple[str, int]]:
    """Suffixes of the parts that are neither images nor labels, and how many there are of each."""
    counts: dict[str, int] = {}
    known = used.union(pictures)
    for number, file in enumerate(files):
        if number not in known:
            suffix = file.name.rpartition("/")[2].partition(".")[2].lower()
            counts[suffix] = counts.get(suffix, 0) + 1
    yield from counts.items()
