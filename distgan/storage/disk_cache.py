"""Bytes of remote shards on a disk of this node, for all of its processes and for later runs.

Each chunk is a file of its own, named by a hash of the shard's whole address, so that no name holds a secret and no two
shards share one. A file is written aside and renamed, and ends in a checksum: whatever a kill, a full disk or a bad
sector leaves behind is either a good chunk or is fetched again. No process waits for another.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from distgan.errors import DataError
from distgan.storage.atomic import no_follow

CHECKSUM = 4  # bytes at the end of each file
SHARE = 128  # a process looks at the folder's size before it writes more than this part of the limit
FULL, EMPTIED = 7 / 8, 3 / 4  # parts of the limit: above the first, chunks are dropped down to the second
ABANDONED_SEC = 3600  # a file that was begun so long ago is left over from a process that was killed


class DiskCache:
    """Chunks of remote shards in a folder, at most `limit` bytes; those that were not used for longest go first.

    The limit holds for up to 16 processes that write at once, however long one of them is held up: a process that has
    written its part since it last looked at the folder looks again before it writes more, and where another process
    is looking at that moment, it does without keeping a chunk.

    Raises:
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        self._warning, self._has_warned = "", False
        self._unseen = limit  # bytes that this process wrote since it looked at the folder; at first it must look
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"data.cache_dir={folder}: {error.strerror}") from None

    def load(self, url: str, size: int, number: int, length: int) -> bytes | None:
        """Return chunk `number` of a shard of `size` bytes; None where it is absent, corrupt or of another length."""
        path = self._path(url, size, length, number)
        try:
            content = path.read_bytes()
        except OSError:
            self.misses += 1
            return None
        data = content[:-CHECKSUM]
        if len(data) == length and zlib.crc32(data).to_bytes(CHECKSUM, "little") == content[-CHECKSUM:]:
            self.hits += 1
            with contextlib.suppress(OSError):  # it may be gone by now
                os.utime(path)
            return data
        self.misses += 1
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def store(self, url: str, size: int, number: int, data: bytes) -> None:
        """Keep a chunk, if the disk lets us; where it does not, nothing more is written."""
        if self._warning:
            return
        path = self._path(url, size, len(data), number)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            if not self._may_write(len(data) + CHECKSUM):
                return
            try:
                path.parent.mkdir(exist_ok=True)
                aside.write_bytes(data + zlib.crc32(data).to_bytes(CHECKSUM, "little"))
                os.replace(aside, path)
            except FileNotFoundError:  # another process dropped the folder, which was empty
                return
            except OSError:
                with contextlib.suppress(OSError):
                    aside.unlink()
                raise
        except OSError as error:
            self._warning = f"data.cache_dir={self.folder} cannot be written ({error.strerror}): continuing without it"

    def pop_warnings(self) -> list[str]:
        """Return a warning where the disk could not be written, once."""
        if self._has_warned or not self._warning:
            return []
        self._has_warned = True
        return [self._warning]

    def _path(self, url: str, size: int, length: int, number: int) -> Path:
        name = hashlib.sha256(f"{url}\n{size}".encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / name[:32] / f"{number:x}-{length:x}"

    def _may_write(self, size: int) -> bool:
        """Count `size` bytes as written, after a look at the folder where this process's part is used up."""
        with self._lock:
            if self._unseen + size <= self.limit / SHARE:
                self._unseen += size
                return True
            before_look = self._unseen
        if not self._make_room():
            return False
        with self._lock:
            self._unseen += size - before_look
        return True

    def _make_room(self) -> bool:
        """Drop what was not used for longest. Returns False at once while another process or thread does that."""
        with open(self.folder / ".lock", "a", opener=no_follow) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            chunks = sorted(self._files())
            total = sum(size for _, size, _ in chunks)
            if total > self.limit * FULL:
                for _, size, path in chunks:
                    if total <= self.limit * EMPTIED:
                        break
                    total -= size
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
        return True

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield when each chunk was used last, its bytes and its path; removes left-overs of killed processes."""
        for folder in list(os.scandir(self.folder)):
            if not folder.is_dir():
                continue
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # where it is empty
                continue
            for file in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    known = file.stat()
                    if file.name.startswith(".") and time.time() - known.st_mtime > ABANDONED_SEC:
                        os.unlink(file)
                    else:
                        yield known.st_mtime, known.st_size, file.path
