"""Byte ranges of shards, wherever they are: read with retries, ahead of their use, and kept for a while.

A read returns exactly the bytes asked for or raises DataError: transient faults are retried from the byte reached,
with growing pauses, until a deadline; a file that changed its size, or a server without ranges, is an error at once.
"""

import contextlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import urlsplit

from distgan.errors import DataError
from distgan.storage.backends import Backend, Fsspec, Http, LocalFiles, RefusedError
from distgan.storage.disk_cache import DiskCache
from distgan.storage.urls import is_local, public, public_text

CHUNK = 256 * 1024  # what the cache of remote bytes keeps and drops as one
PAUSE_SEC = 0.25  # before the first retry
STALL_SEC = 20  # a connection that is silent for so long is given up

WARN_AFTER_SEC, WARN_EVERY_SEC = 5, 30  # of trying in vain

T = TypeVar("T")
log = logging.getLogger("distgan")


class UnansweredError(DataError):
    """No answer within the time that there is for one."""


class ByteRangeReader:
    """Reads byte ranges of shards, from any number of threads.

    Args:
        timeout_sec: How long one read may go on trying.
        cache_bytes: How much of remote shards is kept in memory; it has to hold the windows that are being read.
        connections: How many ranges are fetched at a time when reading ahead.
        disk: Where remote bytes are kept beyond that, and looked for first.
    """

    def __init__(
        self,
        *,
        timeout_sec: float = 120,
        cache_bytes: int = 2**30,
        connections: int = 8,
        disk: DiskCache | None = None,
    ) -> None:
        self.timeout_sec = timeout_sec
        self.retries = 0
        self.disk = disk
        self._warned_at = -math.inf
        self._connections = connections
        self._local = LocalFiles()
        self._remote: dict[str, Backend] = {}  # by scheme
        self._sizes: dict[str, int] = {}
        self._chunks: OrderedDict[tuple[str, int], Future] = OrderedDict()
        self._max_chunks = max(2, cache_bytes // CHUNK)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def size(self, url: str) -> int:
        """Return the bytes of a whole shard."""
        if url not in self._sizes:
            backend = self._local if is_local(url) else self._backend(url)
            self._sizes[url] = self._retry(url, lambda: backend.size(url))
        return self._sizes[url]

    def expect(self, url: str, size: int) -> None:
        """Take the size that a shard's index was made for: an answer that shows another one is an error."""
        self._sizes[url] = size

    def read(self, url: str, start: int, length: int) -> bytes:
        """Read bytes start .. start + length of a shard, from its file or server."""
        if length == 0:
            return b""
        if is_local(url):
            return self._retry(url, lambda: self._local.read(url, start, length))
        backend, got = self._backend(url), bytearray()
        deadline = time.monotonic() + self.timeout_sec

        def read_on() -> bytes:
            if self._closed.is_set():
                raise RefusedError("the source is closed")
            for piece in backend.pieces(url, start + len(got), length - len(got)):
                got.extend(piece)
                if len(got) > length:
                    raise RefusedError("the server sends more bytes than requested")
                if time.monotonic() > deadline or self._closed.is_set():  # a connection may only trickle
                    break
            if len(got) != length:
                raise ConnectionError(f"the answer ended {length - len(got)} bytes early")
            return bytes(got)

        return self._retry(url, read_on)

    def cached(self, url: str, start: int, length: int) -> bytes:
        """Read as `read` does, through the cache that `prefetch` fills. For local files the system keeps that cache."""
        if is_local(url) or length == 0:
            return self.read(url, start, length)
        if start + length > self.size(url):
            raise DataError(f"{public(url)}: ends before byte {start + length}")
        data = b"".join(chunk.result() for chunk in self._chunks_of(url, start, length))
        return data[start % CHUNK :][:length]

    def prefetch(self, url: str, start: int, length: int) -> None:
        """Ask for bytes ahead of their use: the system reads local files ahead, background threads others."""
        if is_local(url):
            with contextlib.suppress(OSError, RefusedError):  # the read itself will raise it
                self._local.read_ahead(url, start, length)
            return
        self._chunks_of(url, start, length)

    def _chunks_of(self, url: str, start: int, length: int) -> list[Future]:
        """Return the chunks that hold these bytes, in order; those that nobody has asked for are fetched from now on.

        A reader waits for these very chunks: those that the cache forgets meanwhile still come, and a fetch that has
        failed by then still raises its error.
        """
        size = self.size(url)
        with self._lock:
            if self._closed.is_set():
                raise DataError(f"{public(url)}: the source is closed")
            self._pool = self._pool or ThreadPoolExecutor(self._connections, thread_name_prefix="distgan-fetch")
            missing: list[int] = []
            wanted = range(start // CHUNK, (start + length - 1) // CHUNK + 1)
            for number in wanted:
                if (url, number) in self._chunks:
                    self._chunks.move_to_end((url, number))
                else:
                    missing.append(number)
                    self._chunks[url, number] = Future()
            chunks = {number: self._chunks[url, number] for number in wanted}
            while len(self._chunks) > self._max_chunks:
                self._chunks.popitem(last=False)
            for run in _runs(missing):
                self._pool.submit(self._fetch, url, size, {number: chunks[number] for number in run})
        return list(chunks.values())

    def close(self) -> None:
        """Stop reading remote shards; whoever waits for their bytes gets an error."""
        self._closed.set()
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False)  # each fetch that has not begun ends at once, with that error

    def _fetch(self, url: str, size: int, chunks: dict[int, Future]) -> None:
        """Fill neighboring chunks, given by number: from the disk, and in one range each what is between."""
        try:
            kept = self._kept(url, size, list(chunks))
            fetched: dict[int, bytes] = {}
            for run in _runs([number for number in chunks if number not in kept]):
                begin, end = run[0] * CHUNK, min((run[-1] + 1) * CHUNK, size)
                data = self.read(url, begin, end - begin)
                fetched |= {number: data[number * CHUNK - begin :][:CHUNK] for number in run}
        except BaseException as error:
            with self._lock:  # whoever asks again later tries again
                for number in chunks:
                    self._chunks.pop((url, number), None)
            for future in chunks.values():
                future.set_exception(error)
            return
        for number, data in (kept | fetched).items():
            chunks[number].set_result(data)
        if self.disk is not None:  # while the readers go on
            for number, data in fetched.items():
                self.disk.store(url, size, number, data)

    def _kept(self, url: str, size: int, numbers: list[int]) -> dict[int, bytes]:
        """Return those of the chunks that lie on the disk, by number."""
        if self.disk is None:
            return {}
        chunks = {n: self.disk.load(url, size, n, min(CHUNK, size - n * CHUNK)) for n in numbers}
        return {number: data for number, data in chunks.items() if data is not None}

    def _retry(self, url: str, attempt: Callable[[], T]) -> T:
        """Return the result of `attempt`, which is made again after a transient fault until the deadline."""
        started, pause = time.monotonic(), PAUSE_SEC
        deadline = started + self.timeout_sec
        while True:
            try:
                return attempt()
            except RefusedError as error:
                raise DataError(f"{public(url)}: {public_text(str(error), url)}") from None
            except OSError as error:
                now, reason = time.monotonic(), public_text(str(error), url)
                if now + pause > deadline:
                    raise UnansweredError(
                        f"{public(url)}: not readable within data.timeout_sec={self.timeout_sec:g}: {reason}"
                    ) from None
                if now > started + WARN_AFTER_SEC and now > self._warned_at + WARN_EVERY_SEC:
                    self._warned_at = now
                    log.warning(f"{public(url)}: {reason}; retrying for {deadline - now:.0f} s at most")
            self.retries += 1
            if self._closed.wait(pause):
                raise DataError(f"{public(url)}: the source is closed")
            pause = min(2 * pause, 15)

    def _backend(self, url: str) -> Backend:
        scheme = urlsplit(url).scheme
        if scheme not in self._remote:
            if scheme in ("http", "https"):
                self._remote[scheme] = Http(self._sizes, min(self.timeout_sec, STALL_SEC), self._connections)
            else:
                self._remote[scheme] = Fsspec()
        return self._remote[scheme]


def _runs(numbers: list[int]) -> Iterator[list[int]]:
    """Cut ascending numbers into runs without a gap."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
