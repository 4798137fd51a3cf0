"""List what `pack` packs: images in folders, zip and tar archives, .npz arrays, WebDataset shards."""

import itertools
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from distgan.data import archives, dataset_card, index_cache, shard_index
from distgan.data.archives import Skipped, hidden
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.find_labels import check_spec, find_labels, is_table, left_out, part_of
from distgan.data.image_format import ARRAYS, MAX_BYTES, SUFFIXES, looks_like_image
from distgan.data.labels import SAY_OTHERWISE, File, Labels
from distgan.data.pack_arrays import list_arrays
from distgan.data.pack_entry import InputEntry, InputListing, pair
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError
from distgan.storage.byte_ranges import ByteRangeReader
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
class ListingOptions:
    """Options that select images and labels of a source.

    Attributes:
        labels: Whether there shall be labels.
        label: Where they are, such as "folders", "folders:2", "archives" or "json:KEY"; empty: a table
            (`dataset.json`), else `cls` parts, else folders.
        part: Suffix of the images, such as "image.png"; empty: found from their names and first bytes.
        allow_corrupt: Whether the good samples of corrupt archives are taken.
        degraded: A second source, with a degraded form of each image under the same name; samples become pairs.
        images, labels_in: Names of the arrays of images and labels; empty: found.
        channels: Channels that the images are to have, by which arrays tell rows from channels.
    """

    labels: bool = True
    label: str = ""
    part: str = ""
    allow_corrupt: bool = False
    degraded: str = ""
    images: str = ""
    labels_in: str = ""
    channels: int = 3

    def __post_init__(self) -> None:
        check_spec(self.label)
        if self.label and not self.labels:
            raise ConfigError(f"--label {self.label} and --no-labels: leave out one of them")
        if self.labels_in and (self.label or not self.labels):
            raise ConfigError(f"--labels {self.labels_in} and --label or --no-labels: leave out one of them")


ALL = ListingOptions()


class Item(NamedTuple):
    """A file of a source, as a candidate for an image and as a holder of labels; `stream` is the compressed tar."""

    entry: InputEntry
    file: File
    stream: str = ""


def list_inputs(source: str, wanted: ListingOptions = ALL) -> InputListing:
    """List the images of a source, or the pairs of two. Raises DataError where there are none to be found."""
    listing = _list_one(source, replace(wanted, part=wanted.part.lower().lstrip(".")))
    if not wanted.degraded:
        return listing
    return pair(listing, _list_one(wanted.degraded, ListingOptions(labels=False, allow_corrupt=wanted.allow_corrupt)))


def _list_one(source: str, wanted: ListingOptions) -> InputListing:
    """List the images of one source; which kind it is, its name and its content tell."""
    path = user_path(source)
    if path.is_dir():
        return _list_folder(path, wanted)
    if not path.is_file():
        if any(mark in source for mark in ("://", "{", "*", "::")):
            return _list_archives(find_shards(source), wanted)
        raise DataError(f"{public(source)}: no such file or folder")
    if path.name.lower().endswith(".npz"):
        return list_arrays(path, wanted.labels, wanted.channels, wanted.images, wanted.labels_in)
    if wanted.images or wanted.labels_in:
        raise ConfigError(f"--images and --labels name arrays of an .npz, which {public(source)} is not")
    if zipfile.is_zipfile(path) or path.name.lower().endswith(archives.ARCHIVES[1:]):
        return _list_archives([str(path)], wanted)
    raise DataError(f"{public(source)}: neither a folder nor a .zip, .tar(.gz .bz2 .xz .zst), .npz or shards")


def _list_folder(folder: Path, wanted: ListingOptions) -> InputListing:
    """List images in folders, or archives in a folder; of both, what there is more of."""
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
    """Return a line that says which of images and archives in one folder are packed."""
    return (
        f"{folder} holds images ({picture}) and archives ({archive}), and {taken} packed: name an archive itself as "
        "the source to pack it, or move away what does not belong there"
    )


def _file_item(folder: Path, name: str) -> Item:
    path = f"{folder}/{name}"

    def read(length: int) -> bytes:
        with open(path, "rb") as file:
            return file.read(length)

    return Item(InputEntry(name, path=path), File(name, read))


def _suffix(name: str) -> str:
    base, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and base else ""


def _is_image(file: File, part: str) -> bool:
    """Return whether a file is an image: by the suffix where it is known, else by the first bytes."""
    if part:
        return file.name.lower().endswith(f".{part}")
    suffix = _suffix(file.name)
    if suffix in SUFFIXES or suffix in NO_PICTURES:
        return suffix in SUFFIXES
    try:
        return looks_like_image(file.read(16))
    except OSError:  # reading tells
        return False


def _listing(items: Sequence[Item], wanted: ListingOptions, skipped: list[Skipped]) -> InputListing:
    """Put labels to images. Of samples in several parts, and where a part is named, images alone are taken."""
    files = [item.file for item in items]
    pictures = [number for number, file in enumerate(files) if _is_image(file, wanted.part)]
    arrays = [number for number, file in enumerate(files) if _suffix(file.name) in ARRAYS and not wanted.part]
    if pictures and arrays:
        skipped += [(files[number].name, "an array next to images") for number in arrays]
        items = [item for item in items if _suffix(item.file.name) not in ARRAYS]
        return _listing(items, wanted, skipped)
    pictures = pictures or arrays
    if wanted.part and not pictures:
        raise DataError(f"--image-part {wanted.part}: no file has this suffix; the first is {files[0].name}")
    labels = Labels(used={number for number, file in enumerate(files) if is_table(file.name)})
    if wanted.labels:
        labels = find_labels(files, pictures, wanted.label)
    chosen = [number for number in range(len(items)) if number not in labels.used]
    if labels.parts or wanted.part:
        chosen = pictures
        if rest := [
            f"{count:,} {suffix or 'without a suffix'}" for suffix, count in left_out(files, chosen, labels.used)
        ]:
            more = f" and {len(rest) - 8} more kinds" if len(rest) > 8 else ""
            labels.assumed.append(f"other parts are left out: {', '.join(rest[:8])}{more}")

    def entries() -> Iterator[InputEntry]:
        for stream, group in itertools.groupby(chosen, key=lambda number: items[number].stream):
            labeled = (replace(items[number].entry, label=labels.of.get(number, -1)) for number in group)
            yield from _streamed(stream, labeled, wanted.allow_corrupt) if stream else labeled

    return InputListing(entries(), len(chosen), labels.classes, skipped, labels.lacking, labels.origin, labels.assumed)


def _streamed(path: str, entries: Iterator[InputEntry], allow_corrupt: bool) -> Iterator[InputEntry]:
    """Yield images of a compressed tar with their bytes; it is read once more, since labels need all names."""
    entry = next(entries, None)
    for place, (_, size, read) in enumerate(archives.unpacked(Path(path), [], allow_corrupt)):
        if entry is not None and entry.span == (place, 0):
            content = read(size) if size <= MAX_BYTES else None
            yield replace(entry, path="", span=None, content=content, size=size)
            entry = next(entries, None)


def _walk(folder: str | Path, skipped: list[Skipped], inside: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield paths of all files below a folder; a linked folder that contains itself is entered once.

    Pipes and devices, which could be read without an end, are left out.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, skipped, f"{inside}{entry.name}/", (*above, real))
            elif entry.is_file() or not os.path.exists(entry.path):  # of a dead link, reading tells
                yield inside + entry.name
            else:
                skipped.append((inside + entry.name, "no regular file"))


def _list_archives(urls: Sequence[str], wanted: ListingOptions, top: Path | None = None) -> InputListing:
    """List archives as one: shards with an image and its class in each sample, or folders packed in files."""
    far = [url for url in urls if not is_local(url)]
    plain = all(local_path(url).lower().endswith(".tar") for url in urls)
    if far or (plain and wanted.label in ("", "cls") and (files := _items(urls[0], wanted, top, False, []))):
        samples = far or any(_suffix(item.file.name) == "cls" or ".clean." in item.file.name for item in files)
        if samples and (far or _is_regular(urls, wanted)):
            if wanted.label not in ("", "cls"):
                raise DataError(f"--label {wanted.label}: copy {public(far[0])} and the others to a local folder first")
            return _list_shards(urls, wanted)
    skipped: list[Skipped] = []
    items = [item for url in urls for item in _items(url, wanted, top, len(urls) > 1, skipped)]
    return _listing(items, wanted, skipped)


def _items(url: str, wanted: ListingOptions, top: Path | None, several: bool, skipped: list[Skipped]) -> list[Item]:
    """Return the files in an archive. Their paths begin where the archive is below `top`."""
    path = user_path(local_path(url))
    above = path.parent.relative_to(top).as_posix() + "/" if top is not None and path.parent != top else ""
    within = f"{above}{archives.stem(path)}" if several else ""

    def item(entry: InputEntry, read: Callable[[int], bytes], stream: str = "") -> Item:
        file = File(above + entry.name.removeprefix("./"), read, within)
        return Item(replace(entry, name=f"{above}{path.name}/{entry.name}") if within else entry, file, stream)

    archive = str(path)
    if zipfile.is_zipfile(path):
        return [
            item(InputEntry(name, path=archive, member=name), partial(archives.zip_read, archive, name))
            for name in archives.zip_names(path)
        ]
    if path.name.lower().endswith(".tar"):
        return [
            item(InputEntry(name, path=archive, span=span), partial(archives.read_span, archive, span))
            for name, span in archives.tar_names(path, skipped, wanted.allow_corrupt)
        ]
    items, room = [], max(2**28, 4 * path.stat().st_size)  # for the bytes of labels, which are kept
    for place, (name, size, read) in enumerate(archives.unpacked(path, skipped, wanted.allow_corrupt)):
        holds_label = is_table(name) or _suffix(name) == part_of(wanted.label).rpartition(".")[2]
        is_known = _suffix(name) in SUFFIXES or _suffix(name) in NO_PICTURES
        content = read(room) if holds_label else b"" if is_known else read(16)
        room -= len(content)
        if holds_label and len(content) < size:
            raise DataError(f"{path}: the labels in it are too large ({name}): {SAY_OTHERWISE}, or unpack it first")
        items.append(item(InputEntry(name, path=archive, span=(place, 0)), _holder(content), archive))
    return items


def _holder(content: bytes) -> Callable[[int], bytes]:
    """Return a reader of bytes that are at hand."""
    return lambda length: content[:length]


def _is_regular(urls: Sequence[str], wanted: ListingOptions) -> bool:
    """Return whether the index says all of these shards: parts are neighbors, keys lack dots, classes are numbers."""
    source = ByteRangeReader()
    pictures = {wanted.part} if wanted.part else SUFFIXES
    for url in urls:
        try:
            summary = index_cache.summary(url, source, default_cache_dir() / "index")
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


def _list_shards(urls: Sequence[str], wanted: ListingOptions) -> InputListing:
    """List the samples of shards by their index, as training reads them."""
    source = ByteRangeReader()
    parts = {part for kind in index_cache.load(urls[0], source, default_cache_dir() / "index").kinds for part in kind}
    pairs = not wanted.part and not parts & SUFFIXES and any(part.startswith("clean.") for part in parts)

    options = DatasetOptions(image=wanted.part, pairs=pairs, allow_corrupt=wanted.allow_corrupt)
    data = Dataset(urls, source, options)
    labeled = wanted.labels and data.has_labels
    if labeled:
        data = Dataset(urls, source, replace(options, labels=True))

    def entries() -> Iterator[InputEntry]:
        for number, url in enumerate(urls):
            located = data.located(number)
            for i, label in enumerate(located.label.tolist()):
                name = f"{os.path.basename(public(url))}[{i}]"
                one, *degraded = (
                    part(name, label, url, offset[i], length[i]) for offset, length in located.image_parts
                )
                yield replace(one, degraded=degraded[0]) if degraded else one

    def part(name: str, label: int, url: str, start: int, length: int) -> InputEntry:
        span = (int(start), int(length))
        if is_local(url):
            return InputEntry(name, label, local_path(url), span=span)
        return InputEntry(name, label, content=source.cached(url, *span))

    names = [str(i) for i in range(data.num_classes)]
    if len(data.class_names) >= len(names):
        names = data.class_names
    lacking = "some samples have no cls part" if wanted.labels and not labeled and data.has_some_labels else ""
    if not labeled:
        return InputListing(entries(), data.num_samples, lacking=lacking)
    return InputListing(entries(), data.num_samples, names, origin="the cls parts")
