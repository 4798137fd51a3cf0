"""Images to be packed, before they are read: where the bytes of each are, and its label."""

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from distgan.condition_spec import Field
from distgan.data import archives
from distgan.data.archives import Skipped
from distgan.data.condition_table import check_columns
from distgan.data.find_labels import check_spec
from distgan.data.image_format import check_bytes
from distgan.errors import ConfigError, DataError
from distgan.storage.urls import public


@dataclass(frozen=True)
class InputEntry:
    """One candidate for an image: where its bytes are (a file, a zip member, a range of a file), or they themselves.

    The label is -1 where there is none. `degraded` is the other half of a pair. What is too large was not read, and has
    its `size` only. `condition` are the values of the image's conditions, NaN where unknown.
    """

    name: str
    label: int = -1
    path: str = ""
    member: str = ""
    span: tuple[int, int] | None = None
    content: bytes | np.ndarray | None = None
    size: int = 0
    degraded: "InputEntry | None" = None
    condition: tuple[float, ...] = ()


@dataclass
class InputListing:
    """All candidates of a source, in a fixed order.

    Attributes:
        total: How many `entries` will yield.
        classes: Names of the classes, or None where the source has no labels.
        skipped: What was left out while listing: names, each with the reason.
        lacking: Why there are no labels, where one might have expected some.
        origin: Where the labels come from.
        assumed: What was assumed, and how to say otherwise.
        conditions: The conditions of each image, without statistics.
    """

    entries: Iterable[InputEntry]
    total: int
    classes: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    lacking: str = ""
    origin: str = ""
    assumed: list[str] = field(default_factory=list)
    conditions: list[Field] = field(default_factory=list)


def pair(clean: InputListing, degraded: InputListing) -> InputListing:
    """Return the clean images that have a degraded one of the same path but for the suffix, with their labels.

    Raises:
        DataError: no two belong together, or it is not clear which do.
    """
    cleans, degradeds = _by_stem(clean, "clean"), _by_stem(degraded, "degraded")
    pairs = [replace(entry, degraded=degradeds[stem]) for stem, entry in cleans.items() if stem in degradeds]
    if not pairs:
        names = [next(iter(entries), "nothing") for entries in (cleans, degradeds)]
        raise DataError(
            f"no clean image has a degraded one of the same name: the first are {names[0]} and {names[1]}. "
            "Both folders must have the same inner folders and names"
        )
    skipped = clean.skipped + degraded.skipped
    skipped += [(entry.name, "without a degraded image") for stem, entry in cleans.items() if stem not in degradeds]
    skipped += [(entry.name, "without a clean image") for stem, entry in degradeds.items() if stem not in cleans]
    return replace(clean, entries=pairs, total=len(pairs), skipped=skipped)


def all_entries(listing: InputListing) -> list[InputEntry]:
    """Return all images at once, with the bytes of those that a compressed archive holds.

    Raises:
        DataError: These bytes are more than half of the memory.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = (memory if limit == resource.RLIM_INFINITY else min(memory, limit)) // 2
    entries: list[InputEntry] = []
    for entry in listing.entries:
        room -= entry_bytes(entry) if entry.content is not None else 0
        if room < 0:
            raise DataError(
                f"{entry.name}: the images up to here fill half of the memory, since their archive is compressed: "
                "`distgan pack` makes shards of it, which are read from the disk"
            )
        entries.append(entry)
    return entries


def _by_stem(listing: InputListing, side: str) -> dict[str, InputEntry]:
    """Return images by their paths below the folder that all are in, without suffixes."""
    entries = all_entries(listing)
    folders = [entry.name.split("/")[:-1] for entry in entries]
    depth = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it takes whole elements)
    by_stem: dict[str, InputEntry] = {}
    for entry in entries:
        stem = "/".join(entry.name.rpartition(".")[0].split("/")[depth:]) or entry.name
        if stem in by_stem:
            raise DataError(
                f"{by_stem[stem].name} and {entry.name}: which of the two is the {side} one? Remove the other"
            )
        by_stem[stem] = entry
    return by_stem


def place(entry: InputEntry) -> str:
    """Return where an image is, for a message."""
    if entry.path and (entry.member or entry.span):
        return f"{public(entry.path)}: {entry.name}"
    return entry.path or entry.name


def entry_bytes(entry: InputEntry) -> int:
    """Return how many bytes `read_entry` would return. Raises OSError."""
    if entry.content is not None:
        return len(entry.content) if isinstance(entry.content, bytes) else entry.content.nbytes
    if entry.member:
        return archives.zip_size(entry.path, entry.member)
    return entry.span[1] if entry.span else entry.size or os.stat(entry.path).st_size


def read_entry(entry: InputEntry) -> bytes | np.ndarray:
    """Read an image's bytes (or pixels, from an array file); called in the process that will decode them.

    Raises:
        CorruptImage: More bytes than any image has; they are not read.
        OSError: They cannot be read.
    """
    if entry.content is not None:
        return entry.content
    size = entry_bytes(entry)
    check_bytes(size)
    if entry.member:
        return archives.zip_read(entry.path, entry.member, size)
    return archives.read_span(entry.path, entry.span or (0, size), size)


@dataclass(frozen=True)
class ListingOptions:
    """Options that select images and labels of a source.

    Attributes:
        labels: Whether there shall be labels.
        label: Where they are, such as "folders", "folders:2", "archives" or "json:KEY"; empty: a table
            (`dataset.json`), else `cls` parts, else folders.
        part: Suffix of the images, such as "image.png"; empty: found from their names and first bytes.
        allow_corrupt: Whether the good samples of corrupt archives are taken.
        degraded: A second source, with a degraded form of each image under the same name; samples become pairs.
        images, labels_in: Names of the arrays of images and labels, or of a table's columns; empty: found.
        table: CSV, TSV or JSON-lines file with the labels.
        channels: Channels that the images are to have, by which arrays tell rows from channels.
        conditions: Columns of the table, or arrays, that become conditions, perhaps each with its kind as "age:number";
            "cls" is the class.
    """

    labels: bool = True
    label: str = ""
    part: str = ""
    allow_corrupt: bool = False
    degraded: str = ""
    images: str = ""
    labels_in: str = ""
    table: str = ""
    channels: int = 3
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_spec(self.label)
        check_columns(self.conditions)
        if self.label and not self.labels:
            raise ConfigError(f"--label {self.label} and --no-labels: leave out one of them")
        if "," in self.part:
            raise ConfigError(f"--image-part {self.part}: one suffix (data.image_key stacks several in training)")
        if self.labels_in and (self.label or not self.labels):
            raise ConfigError(f"--labels {self.labels_in} and --label or --no-labels: leave out one of them")
        if self.table and not self.conditions and (self.label or not self.labels):
            raise ConfigError(f"--table {self.table} and --label or --no-labels: leave out one of them")
