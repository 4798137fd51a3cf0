"""What `pack` packs: pictures in folders, zip and tar archives, .npz arrays, WebDataset shards."""

import contextlib
import io
import json
import lzma
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distgan.data import index, tar
from distgan.data.address import is_local, local_path, public
from distgan.data.dataset import MAX_CLASSES, Dataset
from distgan.data.image import SUFFIXES
from distgan.data.shards import default_cache_dir, find_shards
from distgan.data.source import Source
from distgan.errors import DataError

# RuntimeError: a member with a password; NotImplementedError, one of these: packed in a way that Python lacks
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)


Skipped = tuple[str, str]  # the name of what was left out, and why


@dataclass(frozen=True)
class Entry:
    """One candidate for a picture: where its bytes are (a file, a zip member, a range of a file), or they themselves.

    The label is -1 where there is none. `degraded` is the other half of a pair.
    """

    name: str
    label: int = -1
    path: str = ""
    member: str = ""
    span: tuple[int, int] | None = None
    content: bytes | np.ndarray | None = None
    degraded: "Entry | None" = None


@dataclass
class Listing:
    """All candidates of a source, in a fixed order.

    Attributes:
        total: How many `entries` will yield.
        classes: Names of the classes, or None where the source has no labels.
        skipped: What was left out while listing: names, each with the reason.
        lacking: Why there are no labels, where one might have expected some.
    """

    entries: Iterable[Entry]
    total: int
    classes: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    lacking: str = ""


class Classes(NamedTuple):
    """Names of classes, the number of a picture's class by its name (-1 for none), and why there are no classes."""

    names: list[str] | None = None
    of: Callable[[str], int] = lambda name: -1
    lacking: str = ""


def list_source(source: str, *, labels: bool = True, allow_damaged: bool = False) -> Listing:
    """What a source holds; which kind it is, its name and its content tell."""
    path = Path(source).expanduser()
    name = path.name.lower()
    if path.is_dir():
        if any(path.glob("*.tar")):
            return _list_shards(source, labels, allow_damaged)
        return _list_folder(path, labels)
    if not path.is_file():
        if any(mark in source for mark in ("://", "{", "*", "::")):
            return _list_shards(source, labels, allow_damaged)
        raise DataError(f"{public(source)}: no such file or folder")
    if name.endswith(".npz"):
        return _list_arrays(path, labels)
    if zipfile.is_zipfile(path):
        return _list_zip(path, labels)
    if name.endswith(".tar"):
        return _list_tar(path, labels, allow_damaged)
    if name.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")):
        return _list_compressed_tar(path, labels)
    raise DataError(f"{public(source)}: neither a folder nor a .zip, .tar(.gz .bz2 .xz .zst), .npz or shards")


def pair(clean: Listing, degraded: Listing) -> Listing:
    """The clean pictures that have a degraded one of the same path but for the suffix, with the clean ones' labels.

    Raises:
        DataError: no two belong together, or it is not clear which do.
    """
    sides = [_by_stem(listing, side) for listing, side in ((clean, "clean"), (degraded, "degraded"))]
    found = [replace(entry, degraded=sides[1][stem]) for stem, entry in sides[0].items() if stem in sides[1]]
    if not found:
        names = [next(iter(side), "nothing") for side in sides]
        raise DataError(
            f"no clean picture has a degraded one of the same name: the first are {names[0]} and {names[1]}. "
            "Both folders must have the same inner folders and names"
        )
    skipped = clean.skipped + degraded.skipped
    for other, side, others in (("degraded", *sides), ("clean", *sides[::-1])):
        skipped += [(entry.name, f"without a {other} picture") for stem, entry in side.items() if stem not in others]
    return Listing(found, len(found), clean.classes, skipped, clean.lacking)


def _by_stem(listing: Listing, side: str) -> dict[str, Entry]:
    """Entries by their paths below the folder that all are in, without suffixes."""
    entries = list(listing.entries)
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


def read_entry(entry: Entry) -> bytes | np.ndarray:
    """A candidate's bytes (or pixels, from an array file); called in the process that will decode them."""
    if entry.content is not None:
        return entry.content
    if entry.member:
        try:
            return _open_zip(entry.path).read(entry.member)
        except (*ZIP_ERRORS, EOFError) as error:
            raise OSError(str(error)) from None
    if entry.span is not None:
        with open(entry.path, "rb") as file:
            return os.pread(file.fileno(), entry.span[1], entry.span[0])
    return Path(entry.path).read_bytes()


@lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _list_folder(folder: Path, labels: bool) -> Listing:
    try:
        skipped: list[Skipped] = []
        names = sorted(name for name in _walk(folder, skipped) if not _hidden(name))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from None
    table = _label_table(lambda: (folder / "dataset.json").read_bytes(), names)
    classes = _find_classes(names, labels, table)
    names = [name for name in names if name != "dataset.json"]
    if not names:
        raise DataError(f"{folder}: the folder is empty")
    entries = [Entry(name, classes.of(name), path=f"{folder}/{name}") for name in names]
    return Listing(entries, len(entries), classes.names, skipped, classes.lacking)


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


def _list_zip(path: Path, labels: bool) -> Listing:
    try:
        with zipfile.ZipFile(path) as archive:
            files = [info.filename for info in archive.infolist() if not info.is_dir()]
            names = sorted(name for name in files if not _hidden(name))
            table = _label_table(lambda: archive.read("dataset.json"), names)
    except ZIP_ERRORS as error:
        raise DataError(f"{path}: {error}") from None
    classes = _find_classes(names, labels, table)
    entries = [Entry(name, classes.of(name), str(path), member=name) for name in names if name != "dataset.json"]
    return Listing(entries, len(entries), classes.names, lacking=classes.lacking)


def _list_tar(path: Path, labels: bool, allow_damaged: bool) -> Listing:
    """A plain tar: shards if it has `cls` parts, else a packed folder."""
    import mmap

    skipped: list[Skipped] = []
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = list(_files(data, len(data), skipped))
    except (tar.Damage, ValueError) as damage:
        raise DataError(f"{path}: {damage}") from None
    if any(name.lower().endswith(".cls") for name, _, _ in found):
        return _list_shards(str(path), labels, allow_damaged)
    classes = _find_classes([name for name, _, _ in found], labels)
    entries = [Entry(name, classes.of(name), str(path), span=(offset, size)) for name, offset, size in found]
    return Listing(entries, len(entries), classes.names, skipped, classes.lacking)


def _files(data: tar.Bytes, size: int, skipped: list[Skipped]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of the plain files in a tar; links and sparse files are left out."""
    for name, kind, _, offset, length in tar.members(data, size):
        if not _hidden(name):
            if kind == "file":
                yield name, offset, length
            else:
                skipped.append((name, f"a {kind} in the archive"))


def _list_compressed_tar(path: Path, labels: bool) -> Listing:
    """Read twice, since the classes are known only after all names are."""
    skipped: list[Skipped] = []
    names = [name for name, _ in _unpacked(path, skipped)]
    classes = _find_classes(names, labels)
    if labels and any(name.lower().endswith(".cls") for name in names):
        classes = Classes(lacking="the cls parts of a compressed tar are not read: unpack it first")
    entries = (Entry(name, classes.of(name), content=content) for name, content in _unpacked(path, []))
    return Listing(entries, len(names), classes.names, skipped, classes.lacking)


def _unpacked(path: Path, skipped: list[Skipped]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a compressed tar."""
    try:
        with _decompressed(path) as stream:
            data = _Forward(stream)
            for name, offset, size in _files(data, sys.maxsize, skipped):
                yield name, data[offset : offset + size]
    except tar.Damage as damage:
        raise DataError(f"{path}: damaged: {damage}") from None


class _Forward:
    """A compressed tar as `tar.members` reads it: what lies before the last slice is gone."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream, self._start, self._buffer = stream, 0, b""

    def __getitem__(self, at: slice) -> bytes:
        gap = at.start - self._start - len(self._buffer)
        while gap > 0 and (piece := self._read(min(gap, 2**20))):
            gap -= len(piece)
        self._start, self._buffer = at.start, self._buffer[at.start - self._start :]
        while (lack := at.stop - at.start - len(self._buffer)) > 0 and (piece := self._read(lack)):
            self._buffer += piece
        return self._buffer[: at.stop - at.start]

    def _read(self, length: int) -> bytes:
        try:
            return self._stream.read(length)
        except Exception as error:  # the errors of the decompressors share no base class
            raise tar.Damage(f"not to be decompressed ({error})", self._start) from None


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[io.BufferedIOBase]:
    """The plain tar inside a compressed one."""
    suffix = path.suffix.lower()
    if suffix in (".gz", ".tgz"):
        import gzip as codec
    elif suffix == ".bz2":
        import bz2 as codec
    elif suffix in (".xz", ".txz"):
        import lzma as codec
    elif sys.version_info >= (3, 14):
        from compression import zstd as codec
    else:
        import zstandard as codec
    with codec.open(path, "rb") as stream:
        yield stream


def _list_arrays(path: Path, labels: bool) -> Listing:
    """An .npz with images [N, H, W], [N, H, W, C] or [N, C, H, W] in uint8, and perhaps labels [N]."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {error}") from None
    images = _pick(arrays, ("images", "image", "x", "x_train", "data", "arr_0"), lambda a: a.ndim in (3, 4))
    if images is None:
        raise DataError(f"{path}: no image array [N, H, W(, C)] in it, only {_shapes(arrays)}")
    if images.dtype != np.uint8:
        raise DataError(f"{path}: the images are {images.dtype}, not uint8 0..255: convert them first")
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 3:
        images = images[..., None]
    if 0 in images.shape[1:3]:
        raise DataError(f"{path}: images of {images.shape[2]}x{images.shape[1]} pixels")
    if images.shape[3] not in (1, 3):
        raise DataError(f"{path}: images with {images.shape[3]} channels, expected 1 or 3")
    numbers = _pick(arrays, ("labels", "label", "y", "y_train", "targets", "arr_1"), lambda a: a.ndim <= 2)
    classes = None
    if labels and numbers is not None:
        numbers = numbers.reshape(-1)
        if len(numbers) != len(images) or not np.issubdtype(numbers.dtype, np.integer) or (numbers < 0).any():
            raise DataError(f"{path}: labels must be whole numbers from 0 on, one for each image")
        num_classes = int(numbers.max()) + 1 if len(numbers) else 0
        if num_classes > MAX_CLASSES:
            raise DataError(f"{path}: label {num_classes - 1}: more than {MAX_CLASSES:,} classes")
        classes = [str(name) for name in arrays.get("classes", range(num_classes))]
        if len(classes) < num_classes:
            raise DataError(f"{path}: label {num_classes - 1}, but only {len(classes)} class names")
    entries = (
        Entry(f"{path.name}[{i}]", int(numbers[i]) if classes else -1, content=np.repeat(image, 3 // image.shape[2], 2))
        for i, image in enumerate(images)
    )
    return Listing(entries, len(images), classes)


def _pick(
    arrays: dict[str, np.ndarray], names: tuple[str, ...], fits: Callable[[np.ndarray], bool]
) -> np.ndarray | None:
    return next((arrays[name] for name in names if name in arrays and fits(arrays[name])), None)


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "nothing"


def _list_shards(spec: str, labels: bool, allow_damaged: bool) -> Listing:
    source = Source()
    urls = find_shards(spec)
    parts = {part for kind in index.load(urls[0], source, default_cache_dir() / "index").kinds for part in kind}
    pairs = not parts & SUFFIXES and any(part.startswith("clean.") for part in parts)
    data = Dataset(urls, source, pairs=pairs, allow_damaged=allow_damaged)
    labelled = labels and data.has_labels
    if labelled:
        data = Dataset(urls, source, pairs=pairs, labels=True, allow_damaged=allow_damaged)

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
    lacking = "some samples have no cls part" if labels and not labelled and data.has_some_labels else ""
    return Listing(entries(), data.num_samples, names if labelled else None, lacking=lacking)


def _hidden(name: str) -> bool:
    """Files that file managers leave behind, the resource forks of archives from a Mac, and indexes of shards."""
    return name.endswith(".tar.index") or any(
        (part[:1] == "." and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/")
    )


def _label_table(read: Callable[[], bytes], names: list[str]) -> dict[str, int] | None:
    """Labels from a StyleGAN data set's `dataset.json`: {"labels": [["00000/img00000000.png", 6], ...]}."""
    if "dataset.json" not in names:
        return None
    try:
        table = json.loads(read()).get("labels")
        labels = {name: int(label) for name, label in table} if table else None
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None
    if labels and not 0 <= min(labels.values()) <= max(labels.values()) < MAX_CLASSES:
        raise DataError(f"dataset.json: labels must be whole numbers from 0 to {MAX_CLASSES - 1:,}")
    return labels


def _find_classes(names: list[str], labels: bool, table: dict[str, int] | None = None) -> Classes:
    """The classes that folder names, or a table, give the pictures.

    A class is a folder: the first one in which the pictures' paths differ. Where a picture lies outside of such
    folders, or there is only one folder, there are no labels.
    """
    pictures = [name for name in names if name.rpartition(".")[2].lower() in SUFFIXES]
    if not labels or not pictures:
        return Classes()
    if table:
        if missing := [name for name in pictures if name not in table]:
            raise DataError(f"dataset.json has no label for {missing[0]}")
        return Classes([str(i) for i in range(max(table.values()) + 1)], lambda name: table.get(name, -1))
    folders = [name.split("/")[:-1] for name in pictures]
    depth = len(os.path.commonprefix(folders))  # noqa: RUF071 (of lists it takes whole elements)
    outside = [name for name, folder in zip(pictures, folders) if len(folder) <= depth]
    if outside:
        some = len(outside) < len(pictures)
        return Classes(
            lacking=f"{len(outside):,} picture(s), such as {outside[0]}, lie in no class folder" if some else ""
        )
    found = {folder[depth] for folder in folders}
    classes = sorted(found, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    number = {name: i for i, name in enumerate(classes)}

    def label_of(name: str) -> int:
        parts = name.split("/")
        return number.get(parts[depth], -1) if len(parts) > depth else -1

    return Classes(classes, label_of)
