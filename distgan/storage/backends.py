"""Read an address: local files, http(s), and whatever fsspec knows (s3://, gs://, memory:// ...)."""

import errno
import io
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from distgan.errors import with_hint
from distgan.storage.urls import local_path

if TYPE_CHECKING:
    import fsspec  # each is imported by those who read from such addresses only
    import urllib3

T = TypeVar("T")

PIECE = 64 * 1024  # at most this is received from a connection at a time, between two looks at the clock
MAX_REDIRECTS = 5
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


class RefusedError(Exception):
    """An answer that no retry would change."""


class Backend(Protocol):
    """A reader of one kind of address. Both methods raise RefusedError for good, OSError for a fault worth a retry."""

    def size(self, url: str) -> int:
        """Return the bytes of a whole file."""
        ...

    def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from byte `start` on, in pieces of any size."""
        ...


class LocalFiles:
    """Files of this machine, read by offset so that threads share a descriptor."""

    MAX_OPEN = 128

    def __init__(self) -> None:
        self._open_files: OrderedDict[str, io.FileIO] = OrderedDict()
        self._lock = threading.Lock()

    def size(self, url: str) -> int:
        """Return the bytes of a file as it is now."""
        return os.stat(self._file(url).fileno()).st_size

    def read(self, url: str, start: int, length: int) -> bytes:
        """Read `length` bytes from byte `start` on."""
        file = self._file(url)
        try:
            data = os.pread(file.fileno(), length, start)
        except OSError as error:
            raise _refused_if_lasting(error) from None
        if len(data) == length:
            return data
        if start + len(data) >= os.stat(file.fileno()).st_size:
            raise RefusedError(f"ends before byte {start + length}: the file is shorter than when it was indexed")
        return data + self.read(url, start + len(data), length - len(data))  # at most 2 GiB come at a time

    def read_ahead(self, url: str, start: int, length: int) -> None:
        """Ask the system to have these bytes in memory soon."""
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
                    raise _refused_if_lasting(error) from None
                if not self._open_files:
                    raise RefusedError(with_hint(error.strerror or str(error))) from None
                self._open_files.popitem(last=False)  # its descriptor serves this one


def _refused_if_lasting(error: OSError) -> Exception:
    """Return a fault of this machine's files as RefusedError, unless it may pass."""
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
        """Return the bytes of a file, from the answer to a request for its first one."""
        with self._get(url, 0, 1) as answer:
            return _content_range(answer)[2]

    def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from byte `start` on, as they arrive."""
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
        """Return an answer, after redirects, whose own contents are not read: they may have no end."""
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
        headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        if auth := self._urllib3.util.parse_url(url).auth:
            headers |= self._urllib3.util.make_headers(basic_auth=unquote(auth))
        answer = self._answer(url, headers)
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
    """Return first and last byte, and the whole file's size, from `Content-Range: bytes 0-0/1234`."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", ""))
    if match is None:
        raise RefusedError("the server's range answers do not give the size of the file")
    first, last, total = map(int, match.groups())
    return first, last, total


class Fsspec:
    """Object stores and other file systems, by their fsspec drivers."""

    def size(self, url: str) -> int:
        """Return the bytes of a file."""
        return self._call(url, lambda files, path: int(files.size(path)))

    def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from byte `start` on, in one piece."""
        yield self._call(url, lambda files, path: bytes(files.cat_file(path, start=start, end=start + length)))

    def _call(self, url: str, function: Callable[["fsspec.AbstractFileSystem", str], T]) -> T:
        """Return what a driver answers, with its errors as RefusedError or ConnectionError."""
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
