"""Class labels of images to be packed: numbers, one-hot rows or names -> classes 0, 1 ... with their names."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distgan.data.shard_index import MAX_CLASSES
from distgan.errors import DataError

TABLE = "dataset.json"
MAX_CLASS_NAME = 1000  # characters
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


def as_classes(values: Sequence[object], what: Callable[[int], str]) -> tuple[list[str] | None, list[int]]:
    """Return names of the classes and the class of each value: whole numbers, one-hot rows or names; None is no label.

    Raises:
        DataError: for any other value, named by `what` of its place.
    """
    numbers: list[int] = []
    kinds: dict[str, int] = {}  # with the place where each was seen first
    names = {value.strip() for value in values if isinstance(value, str) and value.strip()}
    order = {name: i for i, name in enumerate(sorted(names, key=number_order))}
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
    """Return 1.0 and True as 1, so that rows compare."""
    return int(value) if isinstance(value, (int, float)) and value in (0, 1) else value


def number_order(name: str) -> tuple[int, str]:
    """Return the key that sorts names as a person does who counts: numbers by value, other names before them."""
    return (int(name) if name.isdecimal() and len(name) <= MAX_CLASS_NAME else -1, name)


def labels_of(classes: list[str] | None, numbers: Iterable[int], image_numbers: Sequence[int], origin: str) -> Labels:
    """Return the labels of images whose classes are known; none without names of classes."""
    return Labels(classes, dict(zip(image_numbers, numbers)), origin) if classes else Labels()


# A table.


# Parts next to the images.


# Folders and archives.
