"""What `pack` packs: images in folders, zip and tar archives, .npz arrays, WebDataset shards."""

import itertools
import math
import os
import resource
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distgan.data import archives, dataset_card, shard_index
from distgan.data.archives import Skipped, hidden
from distgan.data.dataset import MAX_CLASSES, Dataset
from distgan.data.decode import MAX_BYTES, SUFFIXES, check_bytes, looks_like_image
from distgan.data.labels import SAY_OTHERWISE, File, Labels, check_spec, find_labels, is_table, left_out, part_of
from distgan.data.shard_urls import find_shards
from distgan.errors import DataError
from distgan.storage.array_file import ArrayFile
from distgan.storage.byte_ranges import Source
from distgan.storage.home import default_cache_dir, user_path
from distgan.storage.urls import is_local, local_path, public

NO_PICTURES = {
    "txt",
    "json",
    "cls",
    "csv",
    "xml",
    "md",
    "html",
    "url",
    "npy",
    "npz",
    "yaml",
    "yml",
    "db",
    "ini",
    "index",
}


@dataclass(frozen=True)
class Entry:
    """One candidate for an image: where its bytes are (a file, a zip member, a range of a file), or they themselves.

    The label is -1 where there is none. `degraded` is the other half of a pair. What is too large was not read, and has
    its `size` only.
    """

    name: str
    label: int = -1
    path: str = ""
    member: str = ""
    span: tuple[int, int] | None = None
    content: bytes | np.ndarray | None = None
    size: int = 0
    degraded: "Entry | None" = None


@dataclass
class Listing:
    """All candidates of a source, in a fixed order.

    Attributes:
        total: How many `entries` will yield.
        classes: Names of the classes, or None where the source has no labels.
        skipped: What was left out while listing: names, each with the reason.
        lacking: Why there are no labels, where one might have expected some.
        origin: Where the labels come from.
        assumed: What was assumed, and how to say otherwise.
    """

    entries: Iterable[Entry]
    total: int
    classes: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    lacking: str = ""
    origin: str = ""
    assumed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What of a source is asked for.

    Attributes:
        labels: Whether there shall be labels.
        label: Where they are, as `labels.check_spec` has it; empty: told from the source.
        part: Suffix of the images; empty: told from their names and first bytes.
        allow_corrupt: Whether the good samples of corrupt archives are taken.
    """

    labels: bool = True
    label: str = ""
    part: str = ""
    allow_corrupt: bool = False

    def __post_init__(self) -> None:
        check_spec(self.label)


class Item(NamedTuple):
    """A file of a source, as a candidate for an image and as a holder of labels; `stream` is the compressed tar."""

    entry: Entry
    file: File
    stream: str = ""


def list_source(
    source: str, *, labels: bool = True, label: str = "", part: str = "", allow_corrupt: bool = False
) -> Listing:
    """What a source holds; which kind it is, its name and its content tell. See `Wanted` for the options."""
    wanted, path = Wanted(labels, label, part.lower().lstrip("."), allow_corrupt), user_path(source)
    if path.is_dir():
        return _list_folder(path, wanted)
    if not path.is_file():
        if any(mark in source for mark in ("://", "{", "*", "::")):
            return _list_archives(find_shards(source), wanted)
        raise DataError(f"{public(source)}: no such file or folder")
    if path.name.lower().endswith(".npz"):
        return _list_arrays(path, labels)
    if zipfile.is_zipfile(path) or path.name.lower().endswith(archives.ARCHIVES[1:]):
        return _list_archives([str(path)], wanted)
    raise DataError(f"{public(source)}: neither a folder nor a .zip, .tar(.gz .bz2 .xz .zst), .npz or shards")


def pair(clean: Listing, degraded: Listing) -> Listing:
    """The clean images that have a degraded one of the same path but for the suffix, with the clean ones' labels.

    Raises:
        DataError: no two belong together, or it is not clear which do.
    """
    sides = [_by_stem(listing, side) for listing, side in ((clean, "clean"), (degraded, "degraded"))]
    found = [replace(entry, degraded=sides[1][stem]) for stem, entry in sides[0].items() if stem in sides[1]]
    if not found:
        names = [next(iter(side), "nothing") for side in sides]
        raise DataError(
            f"no clean image has a degraded one of the same name: the first are {names[0]} and {names[1]}. "
            "Both folders must have the same inner folders and names"
        )
    skipped = clean.skipped + degraded.skipped
    for other, side, others in (("degraded", *sides), ("clean", *sides[::-1])):
        skipped += [(entry.name, f"without a {other} image") for stem, entry in side.items() if stem not in others]
    return replace(clean, entries=found, total=len(found), skipped=skipped)


def all_entries(listing: Listing) -> list[Entry]:
    """All candidates at once, with the bytes of those that a compressed archive holds.

    Raises:
        DataError: These bytes are more than half of the memory.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = (memory if limit == resource.RLIM_INFINITY else min(memory, limit)) // 2
    entries: list[Entry] = []
    for entry in listing.entries:
        room -= entry_bytes(entry) if entry.content is not None else 0
        if room < 0:
            raise DataError(
                f"{entry.name}: the images up to here fill half of the memory, since their archive is compressed: "
                "`distgan pack` makes shards of it, which are read from the disk"
            )
        entries.append(entry)
    return entries


def _by_stem(listing: Listing, side: str) -> dict[str, Entry]:
    """Entries by their paths below the folder that all are in, without suffixes."""
    entries = all_entries(listing)
    folders = [entry.name.split("/")[:-1] for entry in entries]
    depth = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it takes whole elements)
    found: dict[str, Entry] = {}
    for entry in entries:
        stem = "/".join(entry.name.rpartition(".")[0].split("/")[depth:]) or entry.name
        if stem in found:
            raise DataError(
                f"{found[stem].name} and {entry.name}: which of the two is the {side} one? Remove the other"
            )
        found[stem] = entry
    return found


def place(entry: Entry) -> str:
    """Where a candidate lies, for a person."""
    if entry.path and (entry.member or entry.span):
        return f"{public(entry.path)}: {entry.name}"
    return entry.path or entry.name


def entry_bytes(entry: Entry) -> int:
    """How many bytes `read_entry` would return. Raises OSError."""
    if entry.content is not None:
        return len(entry.content) if isinstance(entry.content, bytes) else entry.content.nbytes
    if entry.member:
        return archives.zip_size(entry.path, entry.member)
    return entry.span[1] if entry.span else entry.size or os.stat(entry.path).st_size


def read_entry(entry: Entry) -> bytes | np.ndarray:
    """A candidate's bytes (or pixels, from an array file); called in the process that will decode them.

    Raises:
        BadImage: More bytes than any image has; they are not read.
        OSError: They cannot be read.
    """
    if entry.content is not None:
        return entry.content
    size = entry_bytes(entry)
    check_bytes(size)
    if entry.member:
        return archives.zip_read(entry.path, entry.member, size)
    return archives.read_span(entry.path, entry.span or (0, size), size)


def _list_folder(folder: Path, wanted: Wanted) -> Listing:
    """Images in folders, or archives in a folder; of both, what there is more of."""
    try:
        skipped: list[Skipped] = []
        names = sorted(name for name in _walk(folder, skipped) if not hidden(name))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None
    if not names:
        raise DataError(f"{folder}: the folder is empty")
    packed = [name for name in names if name.lower().endswith(archives.ARCHIVES)]
    packed = [name for name in packed if "/" not in name] or packed  # inner folders' only where there is none outside
    pictures = [name for name in names if _suffix(name) in SUFFIXES] if packed else []
    if packed and (len(packed) >= len(pictures) or "shards" in dataset_card.read(str(folder))):
        listing = _list_archives([f"{folder}/{name}" for name in packed], wanted, folder)
        if pictures:
            listing.skipped += [(name, "an image next to archives") for name in pictures]
            listing.assumed.append(_both(folder, packed[0], pictures[0], "the archives are"))
        return listing
    items = [_file_item(folder, name) for name in names if name not in packed]
    listing = _listing(items, wanted, skipped)
    if packed:
        listing.skipped += [(name, "an archive next to images") for name in packed]
        listing.assumed.append(_both(folder, packed[0], pictures[0], "the images are"))
    return listing


def _both(folder: Path, archive: str, picture: str, taken: str) -> str:
    return (
        f"{folder} holds images ({picture}) and archives ({archive}), and {taken} packed: name an archive itself as "
        "the source to pack it, or move away what does not belong there"
    )


def _file_item(folder: Path, name: str) -> Item:
    path = f"{folder}/{name}"

    def read(length: int) -> bytes:
        with open(path, "rb") as file:
            return file.read(length)

    return Item(Entry(name, path=path), File(name, read))


def _suffix(name: str) -> str:
    base, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and base else ""


def _is_picture(file: File, part: str) -> bool:
    """By the suffix where it is known, else by the first bytes."""
    if part:
        return file.name.lower().endswith(f".{part}")
    suffix = _suffix(file.name)
    if suffix in SUFFIXES or suffix in NO_PICTURES:
        return suffix in SUFFIXES
    try:
        return looks_like_image(file.read(16))
    except OSError:  # reading tells
        return False


def _listing(items: Sequence[Item], wanted: Wanted, skipped: list[Skipped]) -> Listing:
    """The candidates with their labels. Of samples in several parts, and where a part is named, images alone."""
    files = [item.file for item in items]
    pictures = [number for number, file in enumerate(files) if _is_picture(file, wanted.part)]
    if wanted.part and not pictures:
        raise DataError(f"--image-part {wanted.part}: no file has this suffix; the first is {files[0].name}")
    found = Labels(used={number for number, file in enumerate(files) if is_table(file.name)})
    if wanted.labels:
        found = find_labels(files, pictures, wanted.label)
    chosen = [number for number in range(len(items)) if number not in found.used]
    if found.parts or wanted.part:
        chosen = pictures
        if rest := [
            f"{count:,} {suffix or 'without a suffix'}" for suffix, count in left_out(files, chosen, found.used)
        ]:
            more = f" and {len(rest) - 8} more kinds" if len(rest) > 8 else ""
            found.assumed.append(f"other parts are left out: {', '.join(rest[:8])}{more}")

    def entries() -> Iterator[Entry]:
        for stream, group in itertools.groupby(chosen, key=lambda number: items[number].stream):
            labelled = (replace(items[number].entry, label=found.of.get(number, -1)) for number in group)
            yield from _streamed(stream, labelled, wanted.allow_corrupt) if stream else labelled

    return Listing(entries(), len(chosen), found.classes, skipped, found.lacking, found.origin, found.assumed)


def _streamed(path: str, entries: Iterator[Entry], allow_corrupt: bool) -> Iterator[Entry]:
    """Entries of a compressed tar with their bytes; read once more, since all names come before the first class."""
    entry = next(entries, None)
    for place, (_, size, read) in enumerate(archives.unpacked(Path(path), [], allow_corrupt)):
        if entry is not None and entry.span == (place, 0):
            content = read(size) if size <= MAX_BYTES else None
            yield replace(entry, path="", span=None, content=content, size=size)
            entry = next(entries, None)


def _walk(folder: str | Path, skipped: list[Skipped], inside: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of all files below a folder; a linked folder that contains itself is entered once.

    Pipes and devices, which could be read without an end, are left out.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir():
                yield from _walk(entry.path, skipped, f"{inside}{entry.name}/", (*above, real))
            elif entry.is_file() or not os.path.exists(entry.path):  # of a dead link, reading tells
                yield inside + entry.name
            else:
                skipped.append((inside + entry.name, "no regular file"))


def _list_archives(urls: Sequence[str], wanted: Wanted, top: Path | None = None) -> Listing:
    """Archives as one: shards with one image and its class in each sample, or folders packed in several files."""
    far = [url for url in urls if not is_local(url)]
    plain = all(local_path(url).lower().endswith(".tar") for url in urls)
    if far or (plain and wanted.label in ("", "cls") and (found := _items(urls[0], wanted, top, False, []))):
        samples = far or any(_suffix(item.file.name) == "cls" or ".clean." in item.file.name for item in found)
        if samples and (far or _is_regular(urls, wanted)):
            if wanted.label not in ("", "cls"):
                raise DataError(f"--label {wanted.label}: copy {public(far[0])} and the others to a local folder first")
            return _list_shards(urls, wanted)
    skipped: list[Skipped] = []
    items = [item for url in urls for item in _items(url, wanted, top, len(urls) > 1, skipped)]
    return _listing(items, wanted, skipped)


def _items(url: str, wanted: Wanted, top: Path | None, several: bool, skipped: list[Skipped]) -> list[Item]:
    """The files in an archive. Their paths begin where the archive lies below `top`."""
    path = user_path(local_path(url))
    above = path.parent.relative_to(top).as_posix() + "/" if top is not None and path.parent != top else ""
    within = f"{above}{archives.stem(path)}" if several else ""
    if zipfile.is_zipfile(path):
        return [
            _item(name, above, within, path, Entry(name, path=str(path), member=name), _zip_reader(str(path), name))
            for name in archives.zip_names(path)
        ]
    if path.name.lower().endswith(".tar"):
        return [
            _item(name, above, within, path, Entry(name, path=str(path), span=span), _span_reader(str(path), span))
            for name, span in archives.tar_names(path, skipped, wanted.allow_corrupt)
        ]
    items, room = [], max(2**28, 4 * path.stat().st_size)  # for the bytes of labels, which are kept
    for place, (name, size, read) in enumerate(archives.unpacked(path, skipped, wanted.allow_corrupt)):
        holds_label = is_table(name) or _suffix(name) == part_of(wanted.label).rpartition(".")[2]
        known = _suffix(name) in SUFFIXES or _suffix(name) in NO_PICTURES
        content = read(room) if holds_label else b"" if known else read(16)
        room -= len(content)
        if holds_label and len(content) < size:
            raise DataError(f"{path}: the labels in it are too large ({name}): {SAY_OTHERWISE}, or unpack it first")
        entry = Entry(name, path=str(path), span=(place, 0))
        items.append(_item(name, above, within, path, entry, _holder(content), str(path)))
    return items


def _item(
    name: str, above: str, within: str, path: Path, entry: Entry, read: Callable[[int], bytes], stream: str = ""
) -> Item:
    entry = replace(entry, name=f"{above}{path.name}/{name}") if within else entry
    return Item(entry, File(above + name.removeprefix("./"), read, within), stream)


def _zip_reader(path: str, name: str) -> Callable[[int], bytes]:
    return lambda length: archives.zip_read(path, name, length)


def _span_reader(path: str, span: archives.Span) -> Callable[[int], bytes]:
    return lambda length: archives.read_span(path, span, length)


def _holder(content: bytes) -> Callable[[int], bytes]:
    return lambda length: content[:length]


def _is_regular(urls: Sequence[str], wanted: Wanted) -> bool:
    """Whether the index tells all of these shards: neighbors as parts, no dots in keys, classes as numbers."""
    source = Source()
    pictures = {wanted.part} if wanted.part else SUFFIXES
    for url in urls:
        try:
            summary = shard_index.summary(url, source, default_cache_dir() / "index")
        except DataError:  # of too many kinds of samples
            return False
        parts = {part for kind in summary["kinds"] for part in kind}
        dotted = {part for part in parts - pictures if "." in part and part.rpartition(".")[2] in SUFFIXES | {"cls"}}
        if {part for part in dotted if part.partition(".")[0] not in ("clean", "degraded")}:
            return False
        if not dotted and not parts & pictures and summary["samples"]:
            return False
        if any(label == shard_index.BAD_LABEL for _, label, _ in shard_index.label_counts(summary)):
            return False
        if any(defect.startswith("sample ") for defect in summary["defects"]):
            return False
    return True


def _list_arrays(path: Path, labels: bool) -> Listing:
    """An .npz with images [N, H, W], [N, H, W, C] or [N, C, H, W] in uint8, and perhaps labels [N]."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file")
    with ArrayFile(path) as file:
        name = _first(file, ("images", "image", "x", "x_train", "data", "arr_0"), (3, 4))
        if not name:
            raise DataError(f"{path}: no image array [N, H, W(, C)] in it, only {file.describe()}")
        shape, dtype = file.shape(name), file.dtype(name)
        if dtype != np.uint8:
            raise DataError(f"{path}: the images are {dtype}, not uint8 0..255: convert them first")
        channels_first = len(shape) == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4)
        num, height, width, channels = (shape[i] for i in (0, 2, 3, 1)) if channels_first else (*shape, 1)[:4]
        if not 0 < height * width <= MAX_BYTES // 3:
            raise DataError(f"{path}: images of {width}x{height} pixels")
        if channels not in (1, 3):
            raise DataError(f"{path}: images with {channels} channels, expected 1 or 3")
        classes, numbers = _array_classes(file, num) if labels else (None, np.empty(0, np.int64))

    def entries() -> Iterator[Entry]:
        with ArrayFile(path) as file:
            for i, image in enumerate(file.rows(name)):
                image = image.transpose(1, 2, 0) if channels_first else image.reshape(height, width, channels)
                label = int(numbers[i]) if classes else -1
                yield Entry(f"{path.name}[{i}]", label, content=np.repeat(image, 3 // channels, 2))

    return Listing(entries(), num, classes, origin="the array of labels" if classes else "")


def _array_classes(file: ArrayFile, num: int) -> tuple[list[str] | None, np.ndarray]:
    """Names of the classes in an array file, and the class of each of `num` images; no names without labels."""
    name = _first(file, ("labels", "label", "y", "y_train", "targets", "arr_1"), (0, 1, 2))
    if not name:
        return None, np.empty(0, np.int64)
    if math.prod(file.shape(name)) != num or file.dtype(name).kind not in "iu":
        raise DataError(f"{file.path}: labels must be whole numbers from 0 on, one for each image")
    numbers = file.read(name).reshape(-1)
    if (numbers < 0).any():
        raise DataError(f"{file.path}: labels must be whole numbers from 0 on, one for each image")
    num_classes = int(numbers.max()) + 1 if num else 0
    if num_classes > MAX_CLASSES:
        raise DataError(f"{file.path}: label {num_classes - 1}: more than {MAX_CLASSES:,} classes")
    if "classes" not in file:
        return [str(i) for i in range(num_classes)], numbers
    shape = file.shape("classes")
    if len(shape) != 1 or not num_classes <= shape[0] <= MAX_CLASSES:
        told = f"only {shape[0]:,} class names" if len(shape) == 1 else f"class names of shape {list(shape)}"
        raise DataError(f"{file.path}: label {num_classes - 1}, but {told}")
    return [str(name) for name in file.read("classes").tolist()], numbers


def _first(file: ArrayFile, names: tuple[str, ...], dimensions: tuple[int, ...]) -> str:
    """The first of these arrays that the file has and that has so many dimensions."""
    return next((name for name in names if name in file and len(file.shape(name)) in dimensions), "")


def _list_shards(urls: Sequence[str], wanted: Wanted) -> Listing:
    """Shards by their index, as training reads them."""
    source = Source()
    parts = {part for kind in shard_index.load(urls[0], source, default_cache_dir() / "index").kinds for part in kind}
    pairs = not wanted.part and not parts & SUFFIXES and any(part.startswith("clean.") for part in parts)

    def opened(labels: bool) -> Dataset:
        return Dataset(urls, source, image=wanted.part, pairs=pairs, labels=labels, allow_corrupt=wanted.allow_corrupt)

    data = opened(False)
    labelled = wanted.labels and data.has_labels
    if labelled:
        data = opened(True)

    def entries() -> Iterator[Entry]:
        for number, url in enumerate(urls):
            found = data.located(number)
            for i, label in enumerate(found.label.tolist()):
                name = f"{os.path.basename(public(url))}[{i}]"
                one, *degraded = (part(name, label, url, offset[i], length[i]) for offset, length in found.pictures)
                yield replace(one, degraded=degraded[0]) if degraded else one

    def part(name: str, label: int, url: str, start: int, length: int) -> Entry:
        span = (int(start), int(length))
        if is_local(url):
            return Entry(name, label, local_path(url), span=span)
        return Entry(name, label, content=source.cached(url, *span))

    names = [str(i) for i in range(data.num_classes)]
    if len(data.class_names) >= len(names):
        names = data.class_names
    lacking = "some samples have no cls part" if wanted.labels and not labelled and data.has_some_labels else ""
    if not labelled:
        return Listing(entries(), data.num_samples, lacking=lacking)
    return Listing(entries(), data.num_samples, names, origin="the cls parts")
