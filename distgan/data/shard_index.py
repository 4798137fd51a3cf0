"""Index a shard: the offsets of each sample's bytes, in a small file next to it: `000000.tar` -> `000000.tar.index`.

Any plain tar that WebDataset reads is accepted; the index is made on first use, and put into a cache folder when the
shard's own folder cannot be written. A sample is a run of members with one key, as in `webdataset.group_by_keys`:
the key ends at the first dot of the base name, what follows is the part's suffix, in lower case.
"""

import base64
import hashlib
import json
import mmap
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from distgan.data import tar
from distgan.errors import DataError
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.untrusted import Count, Name, json_of, parse
from distgan.storage.urls import is_local, local_path, public

MAGIC = b"distgan-index-2\n"
ARRAYS = {"first": "<u8", "kind": "<u2", "label": "<i4", "offset": "<u8", "length": "<u4"}
NO_LABEL, BAD_LABEL = -1, -2
MAX_CLASSES = 1_000_000  # a larger label is no class number
_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


class IndexHead(TypedDict):
    """The summary of a shard, at the head of its index."""

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
    head: IndexHead | None = None

    def summary(self) -> IndexHead:
        """Return what is known of the shard without its arrays, as JSON types."""
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
        """Return the index as a file holds it: magic, head, arrays, checksum."""
        head = json.dumps(self.summary(), separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)  # aligned arrays
        arrays = b"".join(getattr(self, name).astype(dtype).tobytes() for name, dtype in ARRAYS.items())
        content = MAGIC + len(head).to_bytes(4, "little") + zlib.crc32(head).to_bytes(4, "little") + head + arrays
        return content + zlib.crc32(content).to_bytes(4, "little")

    @staticmethod
    def from_bytes(data: "bytes | mmap.mmap", only_head: bool = False) -> "ShardIndex":
        """Read an index. Raises ValueError for anything but a whole one of this version, with places in its shard.

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
            head=head,
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


def label_counts(summary: IndexHead) -> list[list[int]]:
    """Return kind, label and number of samples, for all that occur; packed, since thousands of them are many."""
    return np.frombuffer(base64.b64decode(summary["labels"]), "<i4").reshape(-1, 3).tolist()


def _head(data: "bytes | mmap.mmap") -> tuple[IndexHead, int]:
    """Read the head of an index, and return where it ends. Raises ValueError."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("not an index of this version")
    start = len(MAGIC) + 8
    stop = start + int.from_bytes(data[start - 8 : start - 4], "little")
    if zlib.crc32(data[start:stop]) != int.from_bytes(data[start - 4 : start], "little"):
        raise ValueError("corrupt")
    try:
        head = parse(IndexHead, json_of(data[start:stop], "head"), "head")
    except DataError as error:
        raise ValueError(str(error)) from None
    kinds, counts = head["kinds"], head["kind_counts"]
    if len(kinds) != len(counts) or not all(kinds) or sum(counts) != head["samples"]:
        raise ValueError("head: kind_counts does not go with kinds and samples")
    if sum(len(kind) * count for kind, count in zip(kinds, counts)) != head["parts"]:
        raise ValueError("head: parts does not go with kind_counts")
    labels = label_counts(head)  # raises ValueError
    if any(
        not 0 <= kind < len(kinds) or label < BAD_LABEL or not 0 < num <= counts[kind] for kind, label, num in labels
    ):
        raise ValueError("head: labels of samples that there are not")
    return head, stop


def scan(data: tar.Bytes, size: int) -> ShardIndex:
    """Index a shard in one walk through its headers."""
    columns: dict[str, list[int]] = {name: [] for name in ARRAYS}
    kinds: dict[tuple[str, ...], int] = {}
    keys: dict[str, None] = {}  # a set that keeps its order
    defects: list[str] = []
    key, first, label = "", 0, NO_LABEL  # of the current sample
    suffixes: dict[str, None] = {}
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
    except tar.TarError as error:
        defects.append(str(error))
        finish(whole=False)  # the current sample may lack parts

    if len(kinds) >= 2**16:
        raise DataError(
            f"the samples have {len(kinds):,} different sets of parts, such as {' '.join(next(iter(kinds)))}: a key "
            "ends at the first dot of a name, so names like photo.0001.jpg do not go; `distgan pack` renames them"
        )
    arrays = {name: np.array(columns[name], dtype) for name, dtype in ARRAYS.items()}
    digest = hashlib.sha256("\n".join([*keys, *map(str, kinds)]).encode("utf-8", "surrogateescape"))
    for array in arrays.values():
        digest.update(array.tobytes())
    return ShardIndex(size, list(kinds), **arrays, defects=defects, digest=digest.hexdigest(), head=None)


def _label(text: bytes) -> int:
    """Return the number that a `cls` part holds, or BAD_LABEL."""
    try:
        label = int(text)
    except ValueError:
        return BAD_LABEL
    return label if 0 <= label < 2**31 else BAD_LABEL


class ReadAhead:
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


def build(url: str, source: ByteRangeReader) -> ShardIndex:
    """Read a shard's headers: by memory map where it is local, in one pass over its bytes elsewhere."""
    size = source.size(url)
    if not is_local(url):
        return scan(ReadAhead(source.read, url, size, ahead=8 * 2**20), size)
    with tar.opened(local_path(url)) as (data, size):
        return scan(data, size)


def key_of(url: str, source: ByteRangeReader, first: int) -> str:
    """Return the key of the sample whose first header is at byte `first`, often in memory since its image was read."""
    size = source.size(url)
    name, *_ = next(tar.members(ReadAhead(source.cached, url, size, ahead=512), size, first))
    match = _NAME.match(name)
    assert match is not None  # as when the sample was indexed
    return match[1]


def describe(url: str, summary: IndexHead) -> str:
    """Return one line that says what a shard holds."""
    parts = ", ".join(
        f"{count:,} x ({' '.join(kind)})" for kind, count in zip(summary["kinds"], summary["kind_counts"])
    )
    return f"{public(url)}: {summary['samples']:,} samples: {parts or 'none'}"
