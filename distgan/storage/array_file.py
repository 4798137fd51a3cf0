"""Array files (.npz, .npy), read within bounds: the only door to NumPy's own format.

An array's header is held against the bytes that the file really has for it before memory is asked for; pickles are
never opened. An array is read whole, or row by row where it may be larger than memory.
Format: numpy.lib.format, versions 1.0 and 2.0.
"""

import contextlib
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from distgan.errors import DataError

RATIO, FREE = 1000, 2**20  # an array inflates to at most this many times its bytes in the file, and so many more
MAX_EMPTY = 10**6  # rows that take no bytes of a file
WHOLE = 2**28  # bytes of an array that is read whole; more where the file really has a fourth of them
MAX_HEADER = 10_000  # bytes, as NumPy has it
MAX_DIMENSIONS = 32
KINDS = "biufUS"  # numbers and texts: no objects, no records, no dates
PIECE, PACKED_PIECE = 2**18, 2**12  # bytes read at a time; the latter where the bytes to come cannot be limited
ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, KeyError),
    *(ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError, RuntimeError),
)  # RuntimeError: a member with a password, or packed in a way that Python lacks


class ArrayFile:
    """The arrays in an .npz file, for use by `with`.

    Attributes:
        names: Of its arrays.

    Raises (from every method):
        DataError: The file, or an array in it, is not what it says it is, or larger than its bounds.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        with self._reported():
            self._archive = zipfile.ZipFile(path)
            self._size = os.stat(path).st_size
        self._members = {
            info.filename.removesuffix(".npy"): info
            for info in self._archive.infolist()
            if info.filename.endswith(".npy")
        }
        self.names = list(self._members)
        self._layouts: dict[str, tuple[np.dtype, tuple[int, ...], bool]] = {}

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def dtype(self, name: str) -> np.dtype:
        """Return the type of an array, which is not read."""
        return self._layout(name)[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array, which is not read."""
        return self._layout(name)[1]

    def describe(self) -> str:
        """Return one line that names all arrays, with their types and shapes."""
        return ", ".join(map(self._describe, self.names[:20])) or "nothing"

    def read(self, name: str) -> np.ndarray:
        """Read a whole array."""
        dtype, shape, is_fortran = self._layout(name)
        size = dtype.itemsize * prod(shape)
        if size > max(WHOLE, 4 * self._members[name].compress_size):
            raise DataError(f"{self.path}: {name} of {size:,} bytes inflates to too many times its size")
        with self._reported(name), self._open(name) as file:
            _header(file)
            array = np.empty(prod(shape), dtype)
            view, at = array.view(np.uint8).data, 0
            while at < size:
                piece = file.read(min(self._piece(name), size - at))
                if not piece:
                    raise EOFError("it ends early")
                view[at : at + len(piece)] = piece
                at += len(piece)
            return array.reshape(shape, order="F" if is_fortran else "C")

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """Yield an array's elements along its first axis, one after the other; few of them are in memory."""
        dtype, shape, is_fortran = self._layout(name)
        if is_fortran:
            yield from self.read(name)
            return
        size = dtype.itemsize * prod(shape[1:])
        together = max(1, PIECE // max(1, size))  # small ones are read a few at a time
        with self._reported(name), self._open(name) as file:
            _header(file)
            for first in range(0, shape[0], together):
                num = min(together, shape[0] - first)
                read = io.BytesIO()
                while (lack := num * size - read.tell()) > 0:
                    piece = file.read(min(self._piece(name), lack))
                    if not piece:
                        raise EOFError("it ends early")
                    read.write(piece)
                yield from np.frombuffer(read.getvalue(), dtype).reshape(num, *shape[1:])

    def _layout(self, name: str) -> tuple[np.dtype, tuple[int, ...], bool]:
        """Return type, shape, and whether the first index varies fastest, once they fit the bytes that there are."""
        if name not in self._layouts:
            info = self._members[name]
            with self._reported(name):
                if info.file_size > FREE + RATIO * min(info.compress_size, self._size):
                    raise ValueError(f"it inflates to more than {RATIO:,} times its size")
                with self._open(name) as file:
                    start, layout = _header(file)
                if prod(layout[1]) * layout[0].itemsize > info.file_size - start:
                    raise ValueError(f"{_shown(*layout[:2])} in {info.file_size - start:,} bytes")
                self._layouts[name] = layout
        return self._layouts[name]

    def _describe(self, name: str) -> str:
        try:
            return f"{name[:80]} {_shown(*self._layout(name)[:2])}"
        except DataError:
            return f"{name[:80]} (unreadable)"

    def _open(self, name: str) -> IO[bytes]:
        return self._archive.open(self._members[name])

    def _piece(self, name: str) -> int:
        is_limited = self._members[name].compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        return PIECE if is_limited else PACKED_PIECE

    @contextlib.contextmanager
    def _reported(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            what = f"{name[:80]}: " if name else ""
            raise DataError(f"{self.path}: {what}{str(error)[:200] or type(error).__name__}") from None


def parse_npy(data: bytes) -> np.ndarray:
    """Return the array of an .npy file, of which the numbers are not copied. Raises ValueError for any other bytes."""
    try:
        start, (dtype, shape, is_fortran) = _header(io.BytesIO(data))
        size = prod(shape)
        if size * dtype.itemsize > len(data) - start:
            raise ValueError(f"{_shown(dtype, shape)} in {len(data) - start:,} bytes")
        numbers = np.frombuffer(data, dtype, size, start)
    except ERRORS as error:
        raise ValueError(str(error)[:200] or type(error).__name__) from None
    return numbers.reshape(shape, order="F" if is_fortran else "C")


def _header(file: IO[bytes]) -> tuple[int, tuple[np.dtype, tuple[int, ...], bool]]:
    """Return how many bytes an array's header has, and its type, shape and order."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    counted = 2 if version == (1, 0) else 4
    raw = file.read(counted)
    length = int.from_bytes(raw, "little")
    if len(raw) < counted or length > MAX_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    text = io.BytesIO(raw + file.read(length))
    read = np.lib.format.read_array_header_1_0 if counted == 2 else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = read(text, max_header_size=MAX_HEADER)
    except Exception:  # Python's parser raises of every kind, and shows the whole text
        raise ValueError("a header that NumPy did not write") from None
    if dtype.hasobject:
        raise ValueError("values that are objects, which only a pickle could hold (allow_pickle=False)")
    if dtype.kind not in KINDS or not 0 < dtype.itemsize < 2**20:
        raise ValueError(f"values of type {str(dtype)[:80]}, not numbers or texts")
    sizes = [*shape, prod(shape), prod(n for n in shape if n > 0) * dtype.itemsize]
    if len(shape) > MAX_DIMENSIONS or any(isinstance(n, bool) or not 0 <= n < 2**62 for n in sizes):
        raise ValueError(f"a shape that no array has: {str(shape)[:80]}")
    if shape and shape[0] > MAX_EMPTY and not dtype.itemsize * prod(shape[1:]):  # each is an object all the same
        raise ValueError(f"{shape[0]:,} rows without any values")
    return len(np.lib.format.MAGIC_PREFIX) + 2 + counted + length, (dtype, tuple(shape), is_fortran)


def _shown(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"
