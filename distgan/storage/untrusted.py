"""Files that others wrote are data: regular files of a bounded size, JSON of a bounded depth, values by a schema.

Whoever reads a checkpoint, a run folder, a card, an index or statistics reads them through here. What is not as it
should be is a `DataError` of one line. A file that is not there raises `FileNotFoundError`, for its reader to handle.
"""

import errno
import functools
import io
import json
import math
import os
import re
import stat
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from typing import is_typeddict as is_typed_dict

from distgan.errors import DataError, MachineError

MAX_JSON_BYTES = 32 * 2**20  # of one document
MAX_LINES_BYTES = 2**30  # of a file of lines
MAX_LINE_BYTES = 2**20
MAX_SOURCE_BYTES = 2**20  # of a file of Python
MAX_DEPTH = 64  # of lists and mappings in one another
MAX_DIGITS = 100  # of a number
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a fifo"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

T = TypeVar("T")


class UnreadableError(DataError):
    """A file that the system does not let us open or read; what it holds is not known."""


# Files.


def open_regular(path: str | Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading; nothing else is ever waited for or read.

    Args:
        follow_links: Whether the file may be a link. What was received as a folder holds its own files.

    Raises:
        FileNotFoundError: There is none.
        DataError: It is something else, or cannot be opened.
    """
    return cast(BinaryIO, os.fdopen(_opened(path, os.O_RDONLY, follow_links), "rb"))


def open_to_append(path: str | Path) -> io.TextIOWrapper:
    """Open a text file of a run folder to write at its end. One that is a link, or no file, raises `MachineError`."""
    try:
        descriptor = _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, follow_links=False)
    except DataError as error:
        raise MachineError(f"{error}: remove it") from None
    return cast(io.TextIOWrapper, os.fdopen(descriptor, "a+", encoding="utf-8"))


def _opened(path: str | Path, flags: int, follow_links: bool) -> int:
    """Return a descriptor of a regular file. A fifo or a device is opened without waiting, and closed."""
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
        is_link = isinstance(error, OSError) and error.errno == errno.ELOOP and os.path.islink(path)
        reason = "a link, not a file of its own" if is_link else getattr(error, "strerror", None) or error
        raise (DataError if is_link else UnreadableError)(f"{path}: {reason}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "no file")
        raise DataError(f"{path}: {kind}, not a regular file")
    return descriptor


def read(path: str | Path, max_bytes: int, *, follow_links: bool = True) -> bytes:
    """Read a regular file. Raises DataError for anything else, and for more than `max_bytes`."""
    with open_regular(path, follow_links=follow_links) as file:
        size = _size(file, path, max_bytes)
        try:
            data = file.read(size + 1)
        except OSError as error:
            raise UnreadableError(f"{path}: {error.strerror}") from None
    if len(data) > size:  # as files of the system have, too, which say that they have none
        raise DataError(f"{path}: it has more bytes than it says: it is being written, or no file of its own")
    return data


def _size(file: BinaryIO, path: str | Path, max_bytes: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise DataError(f"{path}: {size:,} bytes: no such file has more than {max_bytes:,}")
    return size


def read_lines(path: str | Path, *, max_bytes: int = MAX_LINES_BYTES, follow_links: bool = False) -> Iterator[bytes]:
    """Yield the lines of a file, each with its end; one that is too long is cut, so that it is not JSON."""
    with open_regular(path, follow_links=follow_links) as file:
        _size(file, path, max_bytes)
        while line := file.readline(MAX_LINE_BYTES):
            yield line
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)


# JSON.


def read_json(
    path: str | Path, *, max_bytes: int = MAX_JSON_BYTES, follow_links: bool = True, allow_nan: bool = False
) -> object:
    """Read a small JSON file. Raises FileNotFoundError, or DataError for what is none."""
    return json_of(read(path, max_bytes, follow_links=follow_links), path, allow_nan=allow_nan)


def json_of(data: bytes | str, where: object, *, allow_nan: bool = False) -> object:
    """Parse JSON. Raises DataError for text that is none, too deep, or has numbers of no use."""
    try:
        value = json.loads(
            data,
            parse_int=_int,
            parse_float=functools.partial(_float, allow_nan),
            parse_constant=functools.partial(_float, allow_nan),
        )
    except RecursionError:
        raise DataError(f"{where}: lists or mappings of more than {MAX_DEPTH} levels") from None
    except ValueError as error:  # of text that is no Unicode, too
        raise DataError(f"{where}: not JSON: {str(error)[:120]}") from None
    if _depth(value) > MAX_DEPTH:
        raise DataError(f"{where}: lists or mappings of more than {MAX_DEPTH} levels")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _float(allow_nan: bool, text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    number = float(text)
    if not math.isfinite(number) and not allow_nan:
        raise ValueError(f"{text} is not a finite number")
    return number


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [x for x in level if isinstance(x, (list, dict))]:
        depth += 1
        level = [child for x in level for child in (x.values() if isinstance(x, dict) else x)]
    return depth


# Values by a schema.


@dataclass(frozen=True)
class Between:
    """Bounds of a number, in an `Annotated` hint."""

    low: float
    high: float


@dataclass(frozen=True)
class AtMost:
    """The most characters, items or keys."""

    num: int


@dataclass(frozen=True)
class Like:
    """A pattern that all of a text must match, and its readable name."""

    pattern: str
    description: str


Count = Annotated[int, Between(0, 2**53)]
Positive = Annotated[int, Between(1, 2**53)]
Share = Annotated[float, Between(0, 1)]
Name = Annotated[str, AtMost(1000)]
Sha256 = Annotated[str, Like(r"[0-9a-f]{64}", "64 hexadecimal digits")]


class MisfitError(Exception):
    """A value that does not fit its schema: at which field, what it is, and what it should be."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field.lstrip('.')}: got {_shown(value)}, expected {expected}".lstrip(": "))


def parse(schema: type[T], value: object, where: object) -> T:
    """Return a JSON value that fits a schema; DataError otherwise, which names the first field that does not.

    Args:
        schema: A type hint: bool, int, float, str, None, list[X], dict[str, X], Literal, X | Y, `object` for anything;
            a `TypedDict`, whose other keys are let through; a dataclass, which is built and has no other keys, each
            field within the `low` and `high` of its metadata; all may be `Annotated` by `Between`, `AtMost` and `Like`.
    """
    try:
        return cast(T, _fit(schema, value, ""))
    except MisfitError as misfit:
        raise DataError(f"{where}: {misfit}") from None


def _fit(hint: Any, value: object, field: str) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        fitted = _fit(arguments[0], value, field)
        for bound in arguments[1:]:
            _require(bound, fitted, field)
        return fitted
    if origin in (Union, types.UnionType):
        return _fit_any(arguments, value, field)
    if origin is Literal:
        if value not in arguments or type(value) is not type(arguments[arguments.index(value)]):
            raise MisfitError(field, value, " or ".join(map(repr, arguments)))
        return value
    if origin is list:
        items = _of_type(list, value, field)
        return [_fit(arguments[0], item, f"{field}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        items = _of_type(dict, value, field).items()
        return {key: _fit(arguments[1], item, f"{field}.{_shown_key(key)}") for key, item in items}
    if is_typed_dict(hint) or is_dataclass(hint):
        return _fit_fields(hint, _of_type(dict, value, field), field)
    if hint is object:
        return value
    return _of_type(hint, value, field)


def _fit_any(hints: tuple, value: object, field: str) -> object:
    for hint in hints:
        try:
            return _fit(hint, value, field)
        except MisfitError as error:
            misfit = error
    raise misfit


def _fit_fields(schema: Any, values: dict[str, object], field: str) -> object:
    """Return the fields of a TypedDict or a dataclass, each as its schema has it."""
    hints = _hints(schema)
    if is_typed_dict(schema):
        required = schema.__required_keys__
    else:
        required = {f.name for f in fields(schema) if f.default is MISSING and f.default_factory is MISSING}
        if unknown := [name for name in values if name not in hints]:
            raise MisfitError(field, unknown[0], f"no other fields than {', '.join(hints)}")
    if missing := [name for name in hints if name in required and name not in values]:
        raise MisfitError(f"{field}.{missing[0]}", None, "it to be there")
    fitted = {name: _fit(hints[name], value, f"{field}.{name}") for name, value in values.items() if name in hints}
    if is_typed_dict(schema):
        return {**values, **fitted}
    for f in fields(schema):
        low, high = (f.metadata.get(name) for name in ("low", "high"))
        if f.name in fitted and (low is not None or high is not None):
            bound = Between(-math.inf if low is None else low, math.inf if high is None else high)
            value = fitted[f.name]
            for number in value if isinstance(value, list) else [value]:
                _require(bound, number, f"{field}.{f.name}")
    return schema(**fitted)


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def _of_type(hint: Any, value: object, field: str) -> Any:
    """Return a value of a plain type. JSON's true is no number, and its whole numbers are numbers."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {int: is_number and isinstance(value, int), float: is_number, type(None): value is None}
    if not fits.get(hint, isinstance(value, hint) if hint not in fits else False):
        raise MisfitError(field, value, TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint))))
    return value


TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def _require(bound: object, value: Any, field: str) -> None:
    if isinstance(bound, Between):
        if not bound.low <= value <= bound.high:  # NaN, too
            raise MisfitError(field, value, f"a number from {bound.low} to {bound.high}")
    elif isinstance(bound, AtMost):
        if len(value) > bound.num:
            raise MisfitError(field, value, f"at most {bound.num:,} of them")
    elif isinstance(bound, Like) and not re.fullmatch(bound.pattern, value):
        raise MisfitError(field, value, bound.description)


def _shown_key(key: str) -> str:
    return key if re.fullmatch(r"[\w.-]{1,60}", key, re.ASCII) else _shown(key)


def _shown(value: object) -> str:
    """Return a value for one line."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return f"a mapping of {len(value):,}"
    text = "nothing" if value is None else json.dumps(value) if isinstance(value, (bool, str)) else str(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
