"""Byte ranges of shards: local files, http(s), and whatever fsspec knows (s3://, gs://, memory:// ...).

A read returns exactly the bytes asked for or raises DataError: transient faults are retried from the byte reached,
with growing pauses, until a deadline; a file that changed its size, or a server without ranges, is an error at once.
"""

import contextlib
import errno
import io
import logging
import math
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from distgan.errors import DataError, with_hint
from distgan.storage.disk_cache import NodeCache
from distgan.storage.urls import is_local, local_path, public, public_text

if TYPE_CHECKING:
    import urllib3  # imported by those who read from a server only

CHUNK = 256 * 1024  # what the cache of remote bytes keeps and drops as one
PIECE = 64 * 1024  # at most this is received from a connection at a time, between two looks at the clock
PAUSE_SEC = 0.25  # before the first retry
MAX_REDIRECTS = 5
STALL_SEC = 20  # a connection that is silent for so long is given up
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}

TOLD_AFTER_SEC, TOLD_EVERY_SEC = 5, 30  # of trying in vain

T = TypeVar("T")
log = logging.getLogger("distgan")


class RefusedError(Exception):
    """An answer that no retry would change."""


class UnansweredError(DataError):
    """No answer within the time that there is for one."""


class Backend(Protocol):
    """How one kind of address is read. Both raise RefusedError for good, OSError for a fault worth a retry."""

    def size(self, url: str) -> int: ...

    def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]: ...


class Source:
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
        disk: NodeCache | None = None,
    ) -> None:
        self.timeout_sec = timeout_sec
        self.retries = 0
        self.disk = disk
        self._told_at = -math.inf
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
        """Bytes of a whole shard."""
        if url not in self._sizes:
            backend = self._local if is_local(url) else self._backend(url)
            self._sizes[url] = self._patiently(url, lambda: backend.size(url))
        return self._sizes[url]

    def expect(self, url: str, size: int) -> None:
        """The size that the shard's index was made for: an answer that shows another one is an error."""
        self._sizes[url] = size

    def read(self, url: str, start: int, length: int) -> bytes:
        """Bytes start .. start + length of a shard, from where it lies."""
        if length == 0:
            return b""
        if is_local(url):
            return self._patiently(url, lambda: self._local.read(url, start, length))
        backend, got = self._backend(url), bytearray()
        deadline = time.monotonic() + self.timeout_sec

        def go_on() -> bytes:
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

        return self._patiently(url, go_on)

    def cached(self, url: str, start: int, length: int) -> bytes:
        """Like `read`, through the cache that `prefetch` fills. For local files the system keeps that cache."""
        if is_local(url) or length == 0:
            return self.read(url, start, length)
        if start + length > self.size(url):
            raise DataError(f"{public(url)}: ends before byte {start + length}")
        self.prefetch(url, start, length)
        first = start // CHUNK
        pieces = []
        for number in range(first, (start + length - 1) // CHUNK + 1):
            with self._lock:
                chunk = self._chunks.get((url, number))
            # A chunk is missing only when the cache is too small for all that is being read at this moment.
            begin = number * CHUNK
            pieces.append(chunk.result() if chunk else self.read(url, begin, min(CHUNK, self.size(url) - begin)))
        return b"".join(pieces)[start - first * CHUNK :][:length]

    def prefetch(self, url: str, start: int, length: int) -> None:
        """Have these bytes at hand soon: the system reads ahead in local files, background threads elsewhere."""
        if is_local(url):
            with contextlib.suppress(OSError, RefusedError):  # the read itself will tell
                self._local.read_ahead(url, start, length)
            return
        size = self.size(url)
        with self._lock:
            if self._closed.is_set():
                raise DataError(f"{public(url)}: the source is closed")
            self._pool = self._pool or ThreadPoolExecutor(self._connections, thread_name_prefix="distgan-fetch")
            missing: list[int] = []
            for number in range(start // CHUNK, (start + length - 1) // CHUNK + 1):
                if (url, number) in self._chunks:
                    self._chunks.move_to_end((url, number))
                else:
                    missing.append(number)
                    self._chunks[url, number] = Future()
            runs = [{n: self._chunks[url, n] for n in run} for run in _runs(missing)]
            while len(self._chunks) > self._max_chunks:
                self._chunks.popitem(last=False)
            for chunks in runs:
                self._pool.submit(self._fetch, url, size, chunks)

    def close(self) -> None:
        """Stop reading remote shards; whoever waits for their bytes gets an error."""
        self._closed.set()
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False)  # each fetch that has not begun ends at once, with that error

    def _fetch(self, url: str, size: int, chunks: dict[int, Future]) -> None:
        """Bring neighboring chunks, given by number: from the disk, and in one range each what lies between."""
        try:
            kept, fetched = self._kept(url, size, list(chunks)), {}
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
        for number, data in fetched.items() if self.disk is not None else ():  # while the readers go on
            self.disk.store(url, size, number, data)

    def _kept(self, url: str, size: int, numbers: list[int]) -> dict[int, bytes]:
        """Those of the chunks that lie on the disk, by number."""
        if self.disk is None:
            return {}
        found = {n: self.disk.load(url, size, n, min(CHUNK, size - n * CHUNK)) for n in numbers}
        return {number: data for number, data in found.items() if data is not None}

    def _patiently(self, url: str, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, which is made again after a transient fault until the deadline."""
        started, pause = time.monotonic(), PAUSE_SEC
        deadline = started + self.timeout_sec
        while True:
            try:
                return attempt()
            except RefusedError as error:
                raise DataError(f"{public(url)}: {public_text(str(error), url)}") from None
            except OSError as error:
                now, told = time.monotonic(), public_text(str(error), url)
                if now + pause > deadline:
                    raise UnansweredError(
                        f"{public(url)}: not readable within data.timeout_sec={self.timeout_sec:g}: {told}"
                    ) from None
                if now > started + TOLD_AFTER_SEC and now > self._told_at + TOLD_EVERY_SEC:
                    self._told_at = now
                    log.warning(f"{public(url)}: {told}; retrying for {deadline - now:.0f} s at most")
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
    """Ascending numbers, cut into runs without a gap."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


class LocalFiles:
    """Files of this machine, read by offset so that threads share a descriptor."""

    MAX_OPEN = 128

    def __init__(self) -> None:
        self._open_files: OrderedDict[str, object] = OrderedDict()
        self._lock = threading.Lock()

    def size(self, url: str) -> int:
        return os.stat(self._file(url).fileno()).st_size

    def read(self, url: str, start: int, length: int) -> bytes:
        file = self._file(url)
        try:
            data = os.pread(file.fileno(), length, start)
        except OSError as error:
            raise _lasting(error) from None
        if len(data) == length:
            return data
        if start + len(data) >= os.stat(file.fileno()).st_size:
            raise RefusedError(f"ends before byte {start + length}: the file is shorter than when it was indexed")
        return data + self.read(url, start + len(data), length - len(data))  # at most 2 GiB come at a time

    def read_ahead(self, url: str, start: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file(url).fileno(), start, length, os.POSIX_FADV_WILLNEED)

    def _file(self, url: str) -> io.FileIO:
        path = local_path(url)
        with self._lock:
            if path not in self._open_files:
                self._open_files[path] = self._opened(path)
                if len(self._open_files) > self.MAX_OPEN:
                    self._open_files.popitem(last=False)
            self._open_files.move_to_end(path)
            return self._open_files[path]

    def _opened(self, path: str) -> io.FileIO:
        while True:
            try:
                # Dropped from the list, a file closes with the last thread that still reads from it.
                return open(path, "rb", buffering=0)
            except OSError as error:
                if error.errno not in TOO_MANY_FILES:
                    raise _lasting(error) from None
                if not self._open_files:
                    raise RefusedError(with_hint(error.strerror)) from None
                self._open_files.popitem(last=False)  # its descriptor serves this one


def _lasting(error: OSError) -> Exception:
    """A fault of this machine's files, as RefusedError unless it may pass."""
    return error if error.errno in TRANSIENT else RefusedError(error.strerror)


class Http:
    """Range requests over connections that are kept open."""

    def __init__(self, sizes: dict[str, int], timeout_sec: float, connections: int) -> None:
        import urllib3

        self._urllib3, self._sizes = urllib3, sizes
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            timeout=urllib3.Timeout(connect=timeout_sec, read=timeout_sec),
            # Not one by itself: before each it would read what an answer holds, which may have no end.
            retries=urllib3.Retry(total=0, redirect=False, respect_retry_after_header=False),
        )

    def size(self, url: str) -> int:
        with self._get(url, 0, 1) as answer:
            return _content_range(answer)[2]

    def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]:
        with self._get(url, start, length) as answer:
            first, last, total = _content_range(answer)
            if total != self._sizes.get(url, total):
                raise RefusedError(f"has {total} bytes now, {self._sizes[url]} when it was indexed")
            if first != start or last >= start + length:
                raise RefusedError("the server answers with another range than the one requested")
            try:
                left = length + 1  # one more, to see that there is none
                # What has come by now, however little.
                while left > 0 and (piece := answer.read1(min(PIECE, left), decode_content=False)):
                    left -= len(piece)
                    yield piece
            except self._urllib3.exceptions.HTTPError as error:
                raise ConnectionError(error) from None

    def _answer(self, url: str, headers: dict[str, str]) -> "urllib3.BaseHTTPResponse":
        """An answer, after redirects. Their own contents are not read, as urllib3 does: they may have no end."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
            except self._urllib3.exceptions.HTTPError as error:
                raise ConnectionError(getattr(error, "reason", error)) from None  # the error itself shows the whole URL
            target = answer.get_redirect_location()
            if not target:
                return answer
            answer.close()
            try:
                before, after = urlsplit(url), urlsplit(urljoin(url, target))
                is_same = (before.scheme, before.hostname, before.port) == (after.scheme, after.hostname, after.port)
            except ValueError:
                raise RefusedError("the server redirects to something that is not an address") from None
            if after.scheme not in ("http", "https"):
                raise RefusedError("the server redirects to an address that is neither http nor https")
            if not is_same:
                headers = {name: value for name, value in headers.items() if name != "authorization"}
            url = after.geturl()
        raise ConnectionError("too many redirects")

    def _get(self, url: str, start: int, length: int) -> "urllib3.BaseHTTPResponse":
        wanted = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        if auth := self._urllib3.util.parse_url(url).auth:
            wanted |= self._urllib3.util.make_headers(basic_auth=unquote(auth))
        answer = self._answer(url, wanted)
        if answer.status == 206:
            return answer
        answer.close()
        if answer.status == 200:
            raise RefusedError("the server does not answer range requests; use one that does, or copy the shards")
        if answer.status == 416:
            raise RefusedError(f"has no byte {start}: the file is shorter than when it was indexed")
        if answer.status in (408, 425, 429) or answer.status >= 500:
            raise ConnectionError(f"HTTP status {answer.status}")
        raise RefusedError(f"HTTP status {answer.status} {answer.reason}")


def _content_range(answer: "urllib3.BaseHTTPResponse") -> tuple[int, int, int]:
    """First and last byte, and the whole file's size, from `Content-Range: bytes 0-0/1234`."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", ""))
    if found is None:
        raise RefusedError("the server's range answers do not give the size of the file")
    first, last, total = map(int, found.groups())
    return first, last, total


class Fsspec:
    """Object stores and other file systems, by their fsspec drivers."""

    def size(self, url: str) -> int:
        return self._call(url, lambda files, path: int(files.size(path)))

    def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]:
        yield self._call(url, lambda files, path: files.cat_file(path, start=start, end=start + length))

    def _call(self, url: str, function: Callable) -> object:
        import fsspec

        try:
            return function(*fsspec.core.url_to_fs(url))
        except (FileNotFoundError, PermissionError) as error:
            raise RefusedError(error or type(error).__name__) from None
        except (ImportError, ValueError) as error:  # a driver that is not installed, a protocol nobody knows
            raise RefusedError(error) from None
        except OSError:
            raise
        except Exception as error:  # the drivers' own network errors share no base class
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
