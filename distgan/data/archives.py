"""The files in zip and tar archives, compressed or not: their names in order, and their bytes.

What is compressed is inflated as a stream, and no further than its bounds: a file says how large it is before a byte of
it is read, no reader asks for more of one than it can use, and what inflates to far more than any image is refused.
"""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from distgan.data import tar
from distgan.errors import DataError

# What zipfile raises: its own error for damage, those of what it calls (a name that is not UTF-8, a place before the
# file's beginning, a header that ends early), and RuntimeError for a password or a way of packing that Python lacks.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError),
    *(ValueError, OverflowError, RuntimeError),
)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ARCHIVES = (".zip", ".tar", *COMPRESSED)

RATIO, FREE = 1000, 2**20  # a file in a zip inflates to at most this many times its stored bytes, and so many more
WINDOW = 2**27  # of a compressed tar, inflated bytes between two looks at that ratio
PIECE = 2**16  # is inflated at a time where the bytes to come can be limited; elsewhere, so much is read at a time:
PACKED_PIECE = 2**12
FEW_READS, READ_BYTES = 20_000, 16  # of headers and files in a compressed tar: so many, and one for each of these bytes

Skipped = tuple[str, str]  # the name of what was left out, and why
Span = tuple[int, int]  # where a file's bytes begin in its archive, and how many they are


def hidden(name: str) -> bool:
    """Return whether a file is left behind by a file manager or a Mac, or is the index of a shard."""
    return name.endswith(".tar.index") or any(
        (part[:1] == "." and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/")
    )


def stem(path: Path) -> str:
    """Return the name of an archive without its suffix."""
    name = path.name
    return next((name[: -len(suffix)] for suffix in ARCHIVES if name.lower().endswith(suffix)), name)


def zip_names(path: Path) -> list[str]:
    """Return the names of the files in a zip archive, sorted."""
    try:
        with zipfile.ZipFile(path) as archive:
            # without `is_dir`, which fails for a damaged name of no letters
            return sorted(name for name in archive.namelist() if not name.endswith("/") and not hidden(name))
    except ZIP_ERRORS as error:
        raise DataError(f"{path}: {error}") from None


def zip_size(path: str, name: str) -> int:
    """Return the bytes of a file in a zip archive. Raises OSError for what no image inflates to."""
    try:
        info = _open_zip(path).getinfo(name)
    except ZIP_ERRORS as error:
        raise OSError(str(error)) from None
    if info.file_size > FREE + RATIO * info.compress_size:
        raise OSError(f"inflates to more than {RATIO:,} times its size")
    return info.file_size


def zip_read(path: str, name: str, length: int) -> bytes:
    """Read the first bytes of a file in a zip archive. Raises OSError for what is corrupt."""
    left = min(length, zip_size(path, name))
    out = io.BytesIO()
    try:
        with _open_zip(path).open(name) as file:
            is_limited = _open_zip(path).getinfo(name).compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            most = PIECE if is_limited else PACKED_PIECE
            while left > 0 and (piece := file.read(min(most, left))):
                out.write(piece)
                left -= len(piece)
    except ZIP_ERRORS as error:
        raise OSError(str(error)) from None
    return out.getvalue()


@lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def tar_names(path: Path, skipped: list[Skipped], allow_corrupt: bool = False) -> list[tuple[str, Span]]:
    """Return names and places of the files in a plain tar; what cannot be read at random is skipped."""
    names: list[tuple[str, Span]] = []
    try:
        with tar.opened(path) as (data, size):
            if not size:
                raise OSError("an empty file")
            names.extend((name, (offset, length)) for name, offset, length in _files(data, size, skipped))
    except (tar.TarError, OSError) as damage:
        _report_corrupt(path, damage, skipped, allow_corrupt)
    return names


def unpacked(
    path: Path, skipped: list[Skipped], allow_corrupt: bool = False
) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    """Yield names and sizes of the files in a compressed tar, and how to read so many of their first bytes.

    They can be read until the next one is asked for.
    """
    try:
        with open(path, "rb") as packed, _decompressed(path, packed) as stream:
            data = _Forward(stream, packed)
            for name, offset, size in _files(data, sys.maxsize, skipped):
                yield name, size, functools.partial(_first_bytes, path, data, offset, size)
    except tar.TarError as damage:
        _report_corrupt(path, damage, skipped, allow_corrupt)


def _first_bytes(path: Path, data: tar.Bytes, offset: int, size: int, length: int) -> bytes:
    """Read the first bytes of a file in a compressed tar. Raises DataError where the tar is corrupt."""
    try:
        return data[offset : offset + min(length, size)]
    except tar.TarError as damage:
        raise DataError(f"{path}: corrupt: {damage}") from None


def read_span(path: str, span: Span, length: int) -> bytes:
    """Read the first bytes of a range of a file."""
    with open(path, "rb") as file:
        return os.pread(file.fileno(), min(length, span[1]), span[0])


def _report_corrupt(path: Path, damage: Exception, skipped: list[Skipped], allow_corrupt: bool) -> None:
    """Raise DataError for an archive that is corrupt; where that is allowed, it is listed among what is skipped."""
    reason = (
        f"corrupt: {damage}" if isinstance(damage, tar.TarError) else getattr(damage, "strerror", "") or str(damage)
    )
    if not allow_corrupt:
        raise DataError(f"{path}: {reason}") from None
    skipped.append((path.name, reason))


def _files(data: tar.Bytes, size: int, skipped: list[Skipped]) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and length of the plain files in a tar; links and sparse files are left out."""
    for name, kind, _, offset, length in tar.members(data, size):
        if not hidden(name):
            if kind == "file":
                yield name.removeprefix("./"), offset, length
            else:
                skipped.append((name, f"a {kind} in the archive"))


class _Forward:
    """A compressed tar as `tar.members` reads it: what lies before the last slice is gone."""

    def __init__(self, stream: io.BufferedIOBase, packed: io.BufferedReader) -> None:
        self._stream, self._packed = stream, packed
        self._start, self._buffer = 0, b""
        self._reads = 0
        self._inflated = self._read_before = 0  # bytes since the last look at their ratio; bytes of the file before

    def __getitem__(self, at: slice) -> bytes:
        self._reads += 1
        if self._reads > FEW_READS + self._packed.tell() // READ_BYTES:
            raise tar.TarError("more files than there are bytes for", at.start)
        gap = at.start - self._start - len(self._buffer)
        while gap > 0 and (piece := self._read(min(gap, 2**20))):
            gap -= len(piece)
        kept = self._buffer[at.start - self._start :]
        if len(kept) < at.stop - at.start:
            joined = io.BytesIO()
            joined.write(kept)
            while (lack := at.stop - at.start - joined.tell()) > 0 and (piece := self._read(min(lack, 2**20))):
                joined.write(piece)
            kept = joined.getvalue()
        self._start, self._buffer = at.start, kept
        return kept if len(kept) == at.stop - at.start else kept[: at.stop - at.start]

    def _read(self, length: int) -> bytes:
        try:
            piece = self._stream.read(length)
        except Exception as error:  # the errors of the decompressors share no base class
            raise tar.TarError(f"cannot be decompressed ({str(error) or type(error).__name__})", self._start) from None
        self._inflated += len(piece)
        if self._inflated >= WINDOW:
            read = self._packed.tell()
            if self._inflated > RATIO * (read - self._read_before):
                raise tar.TarError(f"inflates to more than {RATIO:,} times its size", self._start)
            self._inflated, self._read_before = 0, read
        return piece


@contextlib.contextmanager
def _decompressed(path: Path, packed: io.BufferedReader) -> Iterator[io.BufferedIOBase]:
    """Open the plain tar inside a compressed one."""
    suffix = path.suffix.lower()
    stream: io.BufferedIOBase
    if suffix in (".gz", ".tgz"):
        stream = gzip.GzipFile(fileobj=packed)
    elif suffix in (".bz2", ".tbz2"):
        stream = bz2.BZ2File(packed)
    elif suffix in (".xz", ".txz"):
        stream = lzma.LZMAFile(packed)  # noqa: SIM115 (closed below)
    elif sys.version_info >= (3, 14):
        from compression import zstd

        stream = zstd.ZstdFile(packed)
    else:
        import zstandard

        stream = zstandard.open(packed, "rb")
    with stream:
        yield stream
