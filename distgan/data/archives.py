"""The files in zip and tar archives, compressed or not: their names in order, and their bytes."""

import contextlib
import io
import lzma
import mmap
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from distgan.data import tar
from distgan.errors import DataError

# RuntimeError: a member with a password; NotImplementedError, one of these: packed in a way that Python lacks
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ARCHIVES = (".zip", ".tar", *COMPRESSED)

Skipped = tuple[str, str]  # the name of what was left out, and why
Span = tuple[int, int]  # where a file's bytes begin in its archive, and how many they are


def hidden(name: str) -> bool:
    """Files that file managers leave behind, the resource forks of archives from a Mac, and indexes of shards."""
    return name.endswith(".tar.index") or any(
        (part[:1] == "." and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/")
    )


def stem(path: Path) -> str:
    """The name of an archive without its suffix."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in ARCHIVES if name.lower().endswith(suffix)), name)


def zip_names(path: Path) -> list[str]:
    """Names of the files in a zip archive, sorted."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(
                info.filename for info in archive.infolist() if not info.is_dir() and not hidden(info.filename)
            )
    except ZIP_ERRORS as error:
        raise DataError(f"{path}: {error}") from None


def zip_read(path: str, name: str, length: int = -1) -> bytes:
    """The first bytes of a file in a zip archive, or all. Raises OSError for what is damaged."""
    try:
        with _open_zip(path).open(name) as file:
            return file.read(length)
    except (*ZIP_ERRORS, EOFError) as error:
        raise OSError(str(error)) from None


@lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def tar_names(path: Path, skipped: list[Skipped], allow_damaged: bool = False) -> list[tuple[str, Span]]:
    """Names and places of the files in a plain tar, in its order; what cannot be read at random is skipped."""
    found: list[tuple[str, Span]] = []
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found.extend((name, (offset, size)) for name, offset, size in _files(data, len(data), skipped))
    except (tar.Damage, ValueError) as damage:
        _damaged(path, damage, skipped, allow_damaged)
    return found


def unpacked(
    path: Path, skipped: list[Skipped], allow_damaged: bool = False
) -> Iterator[tuple[str, Callable[[int], bytes]]]:
    """Names of the files in a compressed tar, in its order, and how to read so many of their bytes before the next."""
    try:
        with _decompressed(path) as stream:
            data = _Forward(stream)
            for name, offset, size in _files(data, sys.maxsize, skipped):
                yield (
                    name,
                    lambda length, at=offset, size=size: data[at : at + (size if length < 0 else min(length, size))],
                )
    except tar.Damage as damage:
        _damaged(path, damage, skipped, allow_damaged)


def read_span(path: str, span: Span, length: int = -1) -> bytes:
    """The first bytes of a range of a file, or all."""
    with open(path, "rb") as file:
        return os.pread(file.fileno(), span[1] if length < 0 else min(length, span[1]), span[0])


def _damaged(path: Path, damage: Exception, skipped: list[Skipped], allow_damaged: bool) -> None:
    told = f"damaged: {damage}" if isinstance(damage, tar.Damage) else str(damage)
    if not allow_damaged:
        raise DataError(f"{path}: {told}") from None
    skipped.append((path.name, told))


def _files(data: tar.Bytes, size: int, skipped: list[Skipped]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of the plain files in a tar; links and sparse files are left out."""
    for name, kind, _, offset, length in tar.members(data, size):
        if not hidden(name):
            if kind == "file":
                yield name.removeprefix("./"), offset, length
            else:
                skipped.append((name, f"a {kind} in the archive"))


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
    elif suffix in (".bz2", ".tbz2"):
        import bz2 as codec
    elif suffix in (".xz", ".txz"):
        import lzma as codec
    elif sys.version_info >= (3, 14):
        from compression import zstd as codec
    else:
        import zstandard as codec
    with codec.open(path, "rb") as stream:
        yield stream
