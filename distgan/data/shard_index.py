"""Where each sample's bytes lie in a shard, kept in a small file next to it: `000000.tar` -> `000000.tar.index`.

Any plain tar that WebDataset reads is accepted; the index is made on first use, and put into a cache folder when the
shard's own folder cannot be written. A sample is a run of members with one key, as in `webdataset.group_by_keys`:
the key ends at the first dot of the base name, what follows is the part's suffix, in lower case.
"""

import base64
import functools
import hashlib
import json
import logging
import mmap
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from distgan.data import tar
from distgan.errors import DataError
from distgan.storage.atomic import replacing
from distgan.storage.byte_ranges import Source, UnansweredError
from distgan.storage.untrusted import Count, Name, UnreadableError, json_of, open_regular, parse
from distgan.storage.urls import is_local, local_path, public

log = logging.getLogger("distgan")

MAGIC = b"distgan-index-2\n"
SMALL = 16 * 2**20  # bytes of an index that may always be read
ARRAYS = {"first": "<u8", "kind": "<u2", "label": "<i4", "offset": "<u8", "length": "<u4"}
NO_LABEL, BAD_LABEL = -1, -2
MAX_STEPS = 10_000  # from a name through links to a file
_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


class Head(TypedDict):
    """The summary of a shard, as it stands at the head of its index."""

    size: Count
    samples: Count
    parts: Count
    kinds: list[list[Name]]
    kind_counts: list[Count]
    labels: str
    defects: list[str]
    digest: Name


@dataclass
class ShardIndex:
    """The samples of one shard, in its order.

    Attributes:
        size: Bytes of the shard.
        kinds: The sets of parts that occur, each as suffixes in the archive's order, e.g. ("cls", "jpg").
        first: Offset of each sample's first header; uint64 [n].
        kind: Which of `kinds` each sample is; uint16 [n].
        label: The number in each sample's `cls` part, NO_LABEL, or BAD_LABEL; int32 [n].
        offset, length: Bytes of every part, sample by sample; uint64 and uint32 [parts].
        defects: What is wrong with the shard, one line each; samples beyond a cut are not in the index.
        digest: Of all keys, labels and places.
        head: The summary, as it was read.
    """

    size: int
    kinds: list[tuple[str, ...]]
    first: np.ndarray
    kind: np.ndarray
    label: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    defects: list[str]
    digest: str
    head: dict | None = None

    def summary(self) -> dict:
        """What is known of the shard without its arrays, as JSON types."""
        if self.head is not None:
            return self.head
        counts = Counter(zip(self.kind.tolist(), self.label.tolist()))
        labels = [(kind, label, n) for (kind, label), n in sorted(counts.items()) if label != NO_LABEL]
        return {
            "size": self.size,
            "samples": len(self.first),
            "parts": len(self.offset),
            "kinds": [list(kind) for kind in self.kinds],
            "kind_counts": np.bincount(self.kind, minlength=len(self.kinds)).tolist(),
            "labels": base64.b64encode(np.array(labels, "<i4").tobytes()).decode(),  # see `label_counts`
            "defects": self.defects,
            "digest": self.digest,
        }

    def to_bytes(self) -> bytes:
        head = json.dumps(self.summary(), separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)  # aligned arrays
        arrays = b"".join(getattr(self, name).astype(dtype).tobytes() for name, dtype in ARRAYS.items())
        content = MAGIC + len(head).to_bytes(4, "little") + zlib.crc32(head).to_bytes(4, "little") + head + arrays
        return content + zlib.crc32(content).to_bytes(4, "little")

    @staticmethod
    def from_bytes(data: "bytes | mmap.mmap", only_head: bool = False) -> "ShardIndex":
        """Raises ValueError for anything but a whole index of this version, whose places lie in its shard.

        Args:
            only_head: Check the head and the length, not the arrays, which are not read then where `data` is a file.
        """
        if not only_head and zlib.crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
            raise ValueError("corrupt")
        head, body = _head(data)
        arrays = {}
        for name, dtype in ARRAYS.items():
            rows = head["parts" if name in ("offset", "length") else "samples"]
            arrays[name] = np.frombuffer(data, dtype, rows, body)
            body += arrays[name].nbytes
        if len(data) != body + 4:
            raise ValueError("cut")
        index = ShardIndex(
            size=head["size"],
            kinds=[tuple(kind) for kind in head["kinds"]],
            defects=head["defects"],
            digest=head["digest"],
            head=dict(head),
            **arrays,
        )
        if not only_head:
            index._require_places(head["kind_counts"])
        return index

    def _require_places(self, kind_counts: list[int]) -> None:
        """Refuse arrays that are not what the head says, or that point out of the shard. Raises ValueError."""
        counts = np.bincount(self.kind, minlength=len(self.kinds)).tolist()
        if counts != kind_counts:
            raise ValueError("kinds of samples that the head does not list")
        if (self.first > self.size).any() or (self.label < BAD_LABEL).any():
            raise ValueError("a sample that the shard cannot have")
        if (self.length > self.size).any() or (self.offset > self.size - self.length.astype(np.uint64)).any():
            raise ValueError("a part outside of the shard")


def label_counts(summary: dict) -> list[list[int]]:
    """Kind, label and number of samples, for all that occur; packed in a summary, since thousands of them are many."""
    return np.frombuffer(base64.b64decode(summary["labels"]), "<i4").reshape(-1, 3).tolist()


def _head(data: "bytes | mmap.mmap") -> tuple[Head, int]:
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("not an index of this version")
    start = len(MAGIC) + 8
    stop = start + int.from_bytes(data[start - 8 : start - 4], "little")
    if zlib.crc32(data[start:stop]) != int.from_bytes(data[start - 4 : start], "little"):
        raise ValueError("corrupt")
    try:
        head = parse(Head, json_of(data[start:stop], "head"), "head")
    except DataError as error:
        raise ValueError(str(error)) from None
    kinds, counts = head["kinds"], head["kind_counts"]
    if len(kinds) != len(counts) or not all(kinds) or sum(counts) != head["samples"]:
        raise ValueError("head: kind_counts does not go with kinds and samples")
    if sum(len(kind) * count for kind, count in zip(kinds, counts)) != head["parts"]:
        raise ValueError("head: parts does not go with kind_counts")
    labels = label_counts(dict(head))  # raises ValueError
    if any(
        not 0 <= kind < len(kinds) or label < BAD_LABEL or not 0 < num <= counts[kind] for kind, label, num in labels
    ):
        raise ValueError("head: labels of samples that there are not")
    return head, stop


def scan(data: tar.Bytes, size: int) -> ShardIndex:
    """Walk through a shard's headers once."""
    columns: dict[str, list[int]] = {name: [] for name in ARRAYS}
    kinds: dict[tuple[str, ...], int] = {}
    keys: dict[str, None] = {}  # a set that keeps its order
    defects: list[str] = []
    key, first, suffixes, label = "", 0, {}, NO_LABEL  # of the sample at hand
    offset, length = columns["offset"], columns["length"]

    def finish(whole: bool = True) -> None:
        if whole and suffixes and key not in keys:
            keys[key] = None
            columns["first"].append(first)
            columns["kind"].append(kinds.setdefault(tuple(suffixes), len(kinds)))
            columns["label"].append(label)
            return
        if whole and suffixes:
            defects.append(f"sample {key!r}: its parts are not neighbors, or its key occurs twice (at byte {first})")
        del offset[len(offset) - len(suffixes) :], length[len(length) - len(suffixes) :]

    try:
        for name, kind, header, body, size_of_part in tar.members(data, size):
            match = _NAME.match(name)
            if match is None or (name.startswith("__") and _META.match(name)):
                continue
            if kind != "file" or size_of_part >= 2**32:
                what = "larger than 4 GiB" if kind == "file" else f"a {kind}"
                defects.append(f"member {name!r} is {what}, not a plain file: other readers lose it silently")
                continue
            base, suffix = match.groups()
            suffix = suffix.lower()
            if base != key:
                finish()
                key, first, suffixes, label = base, header, {}, NO_LABEL
            elif suffix in suffixes:
                defects.append(f"sample {key!r} has two parts {suffix!r} (at byte {header})")
                continue
            suffixes[suffix] = None
            offset.append(body)
            length.append(size_of_part)
            if suffix == "cls":
                label = _label(data[body : body + min(size_of_part, 32)])
        finish()
    except tar.Damage as damage:
        defects.append(str(damage))
        finish(whole=False)  # the sample at hand may lack parts

    if len(kinds) >= 2**16:
        raise DataError(
            f"the samples have {len(kinds):,} different sets of parts, such as {' '.join(next(iter(kinds)))}: a key "
            "ends at the first dot of a name, so names like photo.0001.jpg do not go; `distgan pack` renames them"
        )
    arrays = {name: np.array(columns[name], dtype) for name, dtype in ARRAYS.items()}
    digest = hashlib.sha256("\n".join([*keys, *map(str, kinds)]).encode("utf-8", "surrogateescape"))
    for array in arrays.values():
        digest.update(array.tobytes())
    return ShardIndex(size=size, kinds=list(kinds), defects=defects, digest=digest.hexdigest(), **arrays)


def _label(text: bytes) -> int:
    try:
        label = int(text)
    except ValueError:
        return BAD_LABEL
    return label if 0 <= label < 2**31 else BAD_LABEL


class Window:
    """A shard as `tar.members` reads it, through a buffer that slides forward over the file."""

    def __init__(self, read: Callable[[str, int, int], bytes], url: str, size: int, ahead: int) -> None:
        self._read, self._url, self.size, self._ahead = read, url, size, ahead
        self._start, self._buffer = 0, b""

    def __getitem__(self, at: slice) -> bytes:
        start, stop = at.start, min(at.stop, self.size)
        if stop <= start:
            return b""
        if not self._start <= start or stop > self._start + len(self._buffer):
            length = min(max(stop - start, self._ahead), self.size - start)
            self._start, self._buffer = start, self._read(self._url, start, length)
        return self._buffer[start - self._start : stop - self._start]


def build(url: str, source: Source) -> ShardIndex:
    """Read a shard's headers: by memory map where it is local, in one pass over its bytes elsewhere."""
    size = source.size(url)
    if not is_local(url):
        return scan(Window(source.read, url, size, ahead=8 * 2**20), size)
    with tar.opened(local_path(url)) as (data, size):
        return scan(data, size)


def load(url: str, source: Source, cache_dir: Path) -> ShardIndex:
    """A shard's index: read where it is kept and still true, made and kept where not."""
    beside, kept = _places(url, cache_dir)
    for path in filter(None, (beside, kept)):
        index = _still_true(path, url, source)
        if index is not None:
            return index
    index = _published(url, source) or build(url, source)
    source.expect(url, index.size)
    if beside is None or not _keep(index, beside):
        _keep(index, kept)
    return index


def summary(url: str, source: Source, cache_dir: Path) -> dict:
    """`load(...).summary()`, which reads no more than the head of an index that is kept and still true."""
    for path in filter(None, _places(url, cache_dir)):
        index = _still_true(path, url, source, only_head=True)
        if index is not None:
            return index.summary()
    return load(url, source, cache_dir).summary()


def _places(url: str, cache_dir: Path) -> tuple[Path | None, Path]:
    """Where a shard's index may lie: next to it, and in the cache."""
    address = os.path.abspath(local_path(url)) if is_local(url) else url
    named = os.path.realpath(address) if is_local(url) else url  # of what a link leads to now
    kept = cache_dir / f"{hashlib.sha256(os.fsencode(named)).hexdigest()[:24]}.index"
    return Path(f"{address}.index") if is_local(url) else None, kept


def _require_size(index_bytes: int, url: str, source: Source) -> None:
    """Refuse an index that is larger than any of such a shard, where a sample takes 512 bytes at least."""
    if index_bytes > SMALL and index_bytes > SMALL + source.size(url) // 4:
        raise ValueError(f"{index_bytes:,} bytes are too many")


def _still_true(path: Path, url: str, source: Source, only_head: bool = False) -> ShardIndex | None:
    """The index at `path`, unless it is missing, corrupt, or the shard is another one now."""
    try:
        with open_regular(path) as file:
            known = os.fstat(file.fileno())
            _require_size(known.st_size, url, source)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if only_head else file.read()
            index = ShardIndex.from_bytes(data, only_head)
    except (OSError, UnreadableError):
        return None
    except (ValueError, DataError) as error:
        _tell_unfit(str(path), str(error).removeprefix(f"{path}: "))
        return None
    if source.size(url) != index.size:
        return None
    if is_local(url):
        # By the time of the change, which `mv`, `cp -p` and rsync cannot set back as they do the other.
        if os.stat(local_path(url)).st_ctime_ns > known.st_ctime_ns:
            return None
        if any(os.lstat(link).st_ctime_ns >= known.st_ctime_ns for link in _links(local_path(url))):
            return None
    for sample in {0, len(index.first) - 1} if len(index.first) else ():
        try:
            start = int(index.first[sample])
            window = Window(source.read, url, index.size, ahead=2048)
            _, _, _, body, length = next(tar.members(window, index.size, start))
            part = 0 if sample == 0 else len(index.offset) - len(index.kinds[index.kind[sample]])
            if (body, length) != (index.offset[part], index.length[part]):
                return None
        except (tar.Damage, StopIteration, IndexError):
            return None
    return index


def _links(path: str) -> Iterator[str]:
    """The links that lead from a file's name to the file; the folder that it is named in is the index's, too."""
    folder, name = os.path.split(os.path.abspath(path))
    at, rest = os.path.realpath(folder), [name]
    for _ in range(MAX_STEPS):
        if not rest:
            return
        name = rest.pop()
        step = os.path.normpath(os.path.join(at, name))
        if not os.path.islink(step):
            at = step
            continue
        yield step
        target = os.readlink(step)
        at = "/" if target.startswith("/") else at
        rest += reversed([part for part in target.split("/") if part])


def _published(url: str, source: Source) -> ShardIndex | None:
    """The index that lies next to a remote shard."""
    if is_local(url):
        return None
    beside = url + ".index"
    try:
        size = source.size(beside)
        _require_size(size, url, source)
        return ShardIndex.from_bytes(source.read(beside, 0, size))
    except UnansweredError:
        raise  # the shard itself would not be answered for either
    except DataError:
        return None
    except ValueError as error:
        _tell_unfit(public(beside), str(error))
        return None


@functools.lru_cache(maxsize=1024)  # once, though an index may be looked for again
def _tell_unfit(where: str, why: str) -> None:
    log.warning(f"warning: {where}: no index of this shard ({why}): it is built again")


def _keep(index: ShardIndex, path: Path) -> bool:
    """Write whole or not at all; False where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(index.to_bytes())
    except OSError:
        return False
    return True


def key_of(url: str, source: Source, first: int) -> str:
    """The key of the sample whose first header lies at byte `first`, most often at hand since its image was read."""
    size = source.size(url)
    name, *_ = next(tar.members(Window(source.cached, url, size, ahead=512), size, first))
    return _NAME.match(name)[1]


def describe(url: str, summary: dict) -> str:
    """One line for a person."""
    parts = ", ".join(
        f"{count:,} x ({' '.join(kind)})" for kind, count in zip(summary["kinds"], summary["kind_counts"])
    )
    return f"{public(url)}: {summary['samples']:,} samples: {parts or 'none'}"
