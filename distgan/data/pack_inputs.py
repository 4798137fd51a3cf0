"""List what `pack` packs: images in folders, zip and tar archives, .npz arrays, WebDataset shards."""

import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from distgan.condition_spec import Conditions
from distgan.data import archives, dataset_card
from distgan.data.archives import Skipped, hidden
from distgan.data.condition_table import (
    CLASS,
    PART,
    class_field,
    conditions_of,
    find_conditions,
    part_of_column,
    split_column,
)
from distgan.data.find_labels import find_labels, is_table, left_out, part_of
from distgan.data.image_format import ARRAYS, MAX_BYTES, SUFFIXES, looks_like_image
from distgan.data.label_tables import from_table, is_row_table
from distgan.data.labels import SAY_OTHERWISE, File, Labels
from distgan.data.pack_arrays import array_columns, list_arrays
from distgan.data.pack_entry import InputEntry, InputListing, ListingOptions, pair
from distgan.data.pack_parquet import list_parquet, parquet_columns
from distgan.data.pack_shards import are_regular, list_shards
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError
from distgan.storage.home import user_path
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


ALL = ListingOptions()


class Item(NamedTuple):
    """A file of a source, as a candidate for an image and as a holder of labels; `stream` is the compressed tar."""

    entry: InputEntry
    file: File
    stream: str = ""


def list_inputs(source: str, wanted: ListingOptions = ALL) -> InputListing:
    """List the images of a source, or the pairs of two. Raises DataError where there are none to be found."""
    listing = _list_one(source, replace(wanted, part=wanted.part.lower().lstrip(".")))
    if CLASS in wanted.conditions and CLASS not in [one.name for one in listing.conditions]:
        listing.conditions = [*listing.conditions, class_field(listing.classes)]
        listing.entries = map(_with_class, listing.entries)
    try:
        Conditions(listing.conditions)
    except ValueError as error:
        raise DataError(f"--condition: {error}") from None
    if not wanted.degraded:
        return listing
    return pair(listing, _list_one(wanted.degraded, ListingOptions(labels=False, allow_corrupt=wanted.allow_corrupt)))


def _with_class(entry: InputEntry) -> InputEntry:
    """Add the class of an image to its conditions."""
    return replace(entry, condition=(*entry.condition, entry.label if entry.label >= 0 else math.nan))


def _with_columns(
    listing: InputListing, wanted: ListingOptions, read: Callable[[Sequence[str]], list[list[object]]], where: str
) -> InputListing:
    """Add conditions from columns that have a value for each image, in the listing's order."""
    columns = [column for column in wanted.conditions if column != CLASS]
    if not columns:
        return listing
    if from_parts := [column for column in columns if part_of_column(column)]:
        raise ConfigError(f"--condition {from_parts[0]}: {where} has no parts next to its images: name its columns")
    if wanted.table:
        raise ConfigError(f"--table {wanted.table}: the conditions of {where} are its own columns")
    values = read([split_column(column)[0] for column in columns])
    found = conditions_of(columns, values, range(listing.total), where)
    rows = (tuple(found.of[i].tolist()) for i in range(listing.total))
    entries = (replace(entry, condition=row) for entry, row in zip(listing.entries, rows, strict=True))
    return replace(listing, entries=entries, conditions=found.fields)


def _condition_names(wanted: ListingOptions) -> set[str]:
    """Return the columns that are conditions."""
    return {split_column(column)[0] for column in wanted.conditions if column != CLASS and not part_of_column(column)}


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
        given = _condition_names(wanted)
        listing = list_arrays(path, wanted.labels, wanted.channels, wanted.images, wanted.labels_in, given)
        return _with_columns(listing, wanted, partial(array_columns, path, listing.total), path.name)
    if path.name.lower().endswith(".parquet"):
        listing = list_parquet([path], wanted.labels, wanted.images, wanted.labels_in, _condition_names(wanted))
        return _with_columns(listing, wanted, partial(parquet_columns, [path]), path.name)
    _refuse_names(source, wanted)
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
    tables = [name for name in names if name.lower().endswith(".parquet")]
    if tables and not any(_suffix(name) in SUFFIXES for name in names):
        paths = [folder / name for name in tables]
        listing = list_parquet(paths, wanted.labels, wanted.images, wanted.labels_in, _condition_names(wanted))
        listing = _with_columns(listing, wanted, partial(parquet_columns, paths), folder.name)
        listing.skipped += [(name, "not a parquet file") for name in names if name not in tables]
        return listing
    _refuse_names(str(folder), wanted)
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


def _refuse_names(source: str, wanted: ListingOptions) -> None:
    """Refuse names of arrays and columns where there are none of those."""
    if wanted.images:
        raise ConfigError(
            f"--images {wanted.images} names an array of an .npz or a column of a parquet file, which {public(source)} "
            "is not"
        )


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
    reads_npy = any(part_of_column(column).endswith("npy") for column in wanted.conditions)
    arrays = [
        number
        for number, file in enumerate(files)
        if _suffix(file.name) in ARRAYS and not wanted.part and not reads_npy
    ]
    if pictures and arrays:
        skipped += [(files[number].name, "an array next to images") for number in arrays]
        items = [item for item in items if _suffix(item.file.name) not in ARRAYS]
        return _listing(items, wanted, skipped)
    pictures = pictures or arrays
    if wanted.part and not pictures:
        raise DataError(f"--image-part {wanted.part}: no file has this suffix; the first is {files[0].name}")
    labels = Labels(used={number for number, file in enumerate(files) if is_table(file.name)})
    named = _read_table(wanted.table) if wanted.table else None
    given = _condition_names(wanted)
    conditions = find_conditions(wanted.conditions, files, pictures, named)
    if named and wanted.labels and not wanted.label:
        table, content = named
        labels = from_table(table, content, wanted.labels_in, files, pictures, conditions=given, optional=bool(given))
        labels.used |= {number for number, file in enumerate(files) if file.name.rpartition("/")[2] == table.name}
    elif wanted.labels:
        labels = find_labels(files, pictures, wanted.label, wanted.labels_in, given)
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
            labeled = (
                replace(
                    items[number].entry,
                    label=labels.of.get(number, -1),
                    condition=tuple(conditions.of[number].tolist()) if number in conditions.of else (),
                )
                for number in group
            )
            yield from _streamed(stream, labeled, wanted.allow_corrupt) if stream else labeled

    if conditions.fields:  # what is no image by its name has no row
        chosen = [number for number in chosen if number in conditions.of]
    return InputListing(
        entries(),
        len(chosen),
        labels.classes,
        skipped,
        labels.lacking,
        labels.origin,
        list(dict.fromkeys([*labels.assumed, *conditions.assumed])),
        conditions.fields,
    )


def _read_table(name: str) -> tuple[File, bytes]:
    """Read a table of labels that was named. Its rows name images from the top of the source."""
    try:
        with open(user_path(name), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"--table {name}: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"--table {name} has more than {MAX_BYTES:,} bytes")
    return File(os.path.basename(name), lambda length: content[:length]), content


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
    from_parts = [column for column in wanted.conditions if part_of_column(column)]
    if far and (wanted.table or from_parts):
        asked = f"--table {wanted.table}" if wanted.table else f"--condition {from_parts[0]}"
        raise DataError(f"{asked}: copy {public(far[0])} and the others to a local folder first")
    by_shard = plain and wanted.label in ("", "cls") and not wanted.table and not from_parts
    if far or (by_shard and (files := _items(urls[0], wanted, top, False, []))):
        samples = far or any(_is_of_sample(item.file.name) for item in files)
        if samples and (far or are_regular(urls, wanted)):
            if wanted.label not in ("", "cls"):
                raise DataError(f"--label {wanted.label}: copy {public(far[0])} and the others to a local folder first")
            return list_shards(urls, wanted)
    skipped: list[Skipped] = []
    items = [item for url in urls for item in _items(url, wanted, top, len(urls) > 1, skipped)]
    return _listing(items, wanted, skipped)


def _is_of_sample(name: str) -> bool:
    """Return whether a file of this name is a part of a sample, which single images have not."""
    return _suffix(name) == "cls" or ".clean." in name or name.endswith(f".{PART}")


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
    parts = {part_of(wanted.label).rpartition(".")[2]}
    parts |= {part_of_column(column).rpartition(".")[2] for column in wanted.conditions if part_of_column(column)}
    items, room = [], max(2**28, 4 * path.stat().st_size)  # for the bytes of labels, which are kept
    for place, (name, size, read) in enumerate(archives.unpacked(path, skipped, wanted.allow_corrupt)):
        holds_label = is_table(name) or is_row_table(name) or _suffix(name) in parts
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
