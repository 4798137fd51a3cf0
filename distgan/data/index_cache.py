"""The index of a shard on disk, next to it or in a cache folder: read while it is true, built again where it is not."""

import functools
import hashlib
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from distgan.data import shard_index, tar
from distgan.data.shard_index import IndexHead, ReadAhead, ShardIndex
from distgan.errors import DataError
from distgan.storage.atomic import replacing
from distgan.storage.byte_ranges import ByteRangeReader, UnansweredError
from distgan.storage.untrusted import UnreadableError, open_regular
from distgan.storage.urls import is_local, local_path, public

log = logging.getLogger("distgan")

SMALL = 16 * 2**20  # bytes of an index that may always be read
MAX_STEPS = 10_000  # from a name through links to a file


def load(url: str, source: ByteRangeReader, cache_dir: Path) -> ShardIndex:
    """Return a shard's index: read where it is kept and still true, made and kept where not."""
    beside, cached = _places(url, cache_dir)
    for path in filter(None, (beside, cached)):
        index = _read_if_true(path, url, source)
        if index is not None:
            return index
    index = _published(url, source) or shard_index.build(url, source)
    source.expect(url, index.size)
    if beside is None or not _keep(index, beside):
        _keep(index, cached)
    return index


def summary(url: str, source: ByteRangeReader, cache_dir: Path) -> IndexHead:
    """Return what `load(...).summary()` would; of an index that is kept and still true, only the head is read."""
    for path in filter(None, _places(url, cache_dir)):
        index = _read_if_true(path, url, source, only_head=True)
        if index is not None:
            return index.summary()
    return load(url, source, cache_dir).summary()


def _places(url: str, cache_dir: Path) -> tuple[Path | None, Path]:
    """Return where a shard's index may lie: next to it, and in the cache."""
    address = os.path.abspath(local_path(url)) if is_local(url) else url
    named = os.path.realpath(address) if is_local(url) else url  # of what a link leads to now
    cached = cache_dir / f"{hashlib.sha256(os.fsencode(named)).hexdigest()[:24]}.index"
    return Path(f"{address}.index") if is_local(url) else None, cached


def _require_size(index_bytes: int, url: str, source: ByteRangeReader) -> None:
    """Refuse an index that is larger than any of such a shard, where a sample takes 512 bytes at least."""
    if index_bytes > SMALL and index_bytes > SMALL + source.size(url) // 4:
        raise ValueError(f"{index_bytes:,} bytes are too many")


def _read_if_true(path: Path, url: str, source: ByteRangeReader, only_head: bool = False) -> ShardIndex | None:
    """Return the index at `path`, unless it is missing, corrupt, or the shard is another one now."""
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            _require_size(status.st_size, url, source)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if only_head else file.read()
            index = ShardIndex.from_bytes(data, only_head)
    except (OSError, UnreadableError):
        return None
    except (ValueError, DataError) as error:
        _warn_unfit(str(path), str(error).removeprefix(f"{path}: "))
        return None
    if source.size(url) != index.size:
        return None
    if is_local(url):
        # By the time of the change, which `mv`, `cp -p` and rsync cannot set back as they do the other.
        if os.stat(local_path(url)).st_ctime_ns > status.st_ctime_ns:
            return None
        if any(os.lstat(link).st_ctime_ns >= status.st_ctime_ns for link in _links(local_path(url))):
            return None
    for sample in {0, len(index.first) - 1} if len(index.first) else ():
        try:
            start = int(index.first[sample])
            window = ReadAhead(source.read, url, index.size, ahead=2048)
            _, _, _, body, length = next(tar.members(window, index.size, start))
            part = 0 if sample == 0 else len(index.offset) - len(index.kinds[index.kind[sample]])
            if (body, length) != (index.offset[part], index.length[part]):
                return None
        except (tar.TarError, StopIteration, IndexError):
            return None
    return index


def _links(path: str) -> Iterator[str]:
    """Yield the links that lead from a file's name to the file; the folder that it is named in is the index's, too."""
    folder, name = os.path.split(os.path.abspath(path))
    place, rest = os.path.realpath(folder), [name]
    for _ in range(MAX_STEPS):
        if not rest:
            return
        name = rest.pop()
        step = os.path.normpath(os.path.join(place, name))
        if not os.path.islink(step):
            place = step
            continue
        yield step
        target = os.readlink(step)
        place = "/" if target.startswith("/") else place
        rest += reversed([part for part in target.split("/") if part])


def _published(url: str, source: ByteRangeReader) -> ShardIndex | None:
    """Return the index next to a remote shard."""
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
        _warn_unfit(public(beside), str(error))
        return None


@functools.lru_cache(maxsize=1024)  # once, though an index may be looked for again
def _warn_unfit(place: str, reason: str) -> None:
    log.warning(f"warning: {place}: no index of this shard ({reason}): it is built again")


def _keep(index: ShardIndex, path: Path) -> bool:
    """Write whole or not at all; False where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(index.to_bytes())
    except OSError:
        return False
    return True
