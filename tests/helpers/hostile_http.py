"""A corpus of answers of a server that is broken or means no good."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hostile import Case, Share

from distgan.data import index_cache
from distgan.errors import DataError
from distgan.storage.byte_ranges import ByteRangeReader

LENGTH = 1000
RIGHT = bytes(i % 251 for i in range(LENGTH))
RANGE = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-999/5000\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
Answer = Callable[[], Iterable[bytes]]  # what is sent after each request, until the other side closes


def cases(folder: Path, share: Share) -> Iterator[Case]:
    """A server each, which ends with the process."""
    for name, (answer, allowed) in ANSWERS.items():
        yield Case(name, _reading(_served(answer)), allowed, memory_mb=256, wall_sec=30)
    yield Case("an index of 10^15 bytes", _indexed, ("refused 3",), memory_mb=256, wall_sec=30)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _once(*pieces: bytes) -> Answer:
    return lambda: pieces


def _endless(start: bytes, piece: bytes) -> Answer:
    return lambda: itertools.chain([start], itertools.repeat(piece))


def _redirect(target: bytes, rest: bytes = b"Content-Length: 0\r\n\r\n") -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\n" + rest


REFUSED, EITHER = ("refused 3",), ("right", "refused 3")
MIB = bytes(2**20)
ANSWERS: dict[str, tuple[Answer, tuple[str, ...]]] = {
    "right": (_once(RANGE + b"Content-Length: 1000\r\n\r\n" + RIGHT), ("right",)),
    "right in chunks": (_once(RANGE + CHUNKED + _chunk(RIGHT[:10]) + _chunk(RIGHT[10:]) + _chunk(b"")), ("right",)),
    "one byte too many": (_once(RANGE + CHUNKED + _chunk(RIGHT + b"x") + _chunk(b"")), REFUSED),
    "endless chunks": (_endless(RANGE + CHUNKED, _chunk(MIB)), REFUSED),
    "endless small chunks": (_endless(RANGE + CHUNKED, _chunk(b"ab")), REFUSED),
    "endless chunks after what was asked for": (_endless(RANGE + CHUNKED + _chunk(RIGHT), _chunk(MIB)), REFUSED),
    "endless without a length": (_endless(RANGE + b"\r\n", MIB), REFUSED),
    "a length beyond the range": (_endless(RANGE + b"Content-Length: 1000000000\r\n\r\n", MIB), REFUSED),
    "an endless chunk": (_endless(RANGE + CHUNKED + b"fffffffffffffff\r\n", MIB), REFUSED),
    "an endless length of a chunk": (_endless(RANGE + CHUNKED, b"0" * 2**16), REFUSED),
    "a chunk of -1 bytes": (_once(RANGE + CHUNKED + b"-1\r\n" + RIGHT), REFUSED),
    "an endless whole file": (_endless(b"HTTP/1.1 200 OK\r\n" + CHUNKED, _chunk(MIB)), REFUSED),
    "an endless 404": (_endless(b"HTTP/1.1 404 Not Found\r\n" + CHUNKED, _chunk(MIB)), REFUSED),
    "an endless 503": (_endless(b"HTTP/1.1 503 Busy\r\n" + CHUNKED, _chunk(MIB)), REFUSED),
    "a 503 for a year": (_endless(b"HTTP/1.1 503 Busy\r\nRetry-After: 31536000\r\n" + CHUNKED, _chunk(MIB)), REFUSED),
    "an endless redirect": (_endless(_redirect(b"/x", CHUNKED), _chunk(MIB)), REFUSED),
    "a redirect to itself": (_once(_redirect(b"/x")), REFUSED),
    "a redirect to a file": (_once(_redirect(b"file:///etc/passwd")), REFUSED),
    "a redirect to a broken address": (_once(_redirect(b"http://[bad/")), REFUSED),
    "a redirect to no port": (_once(_redirect(b"http://127.0.0.1:99999/")), REFUSED),
    "a redirect to letters as a port": (_once(_redirect(b"http://127.0.0.1:a/")), REFUSED),
    "an endless line of a header": (_endless(b"HTTP/1.1 206 ", b"x" * 2**16), REFUSED),
    "endless headers": (_endless(b"HTTP/1.1 206 OK\r\n", b"X: y\r\n"), REFUSED),
    "a size of 5,000 digits": (
        _once(
            b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-999/"
            + b"9" * 5000
            + b"\r\nContent-Length: 1000\r\n\r\n"
            + RIGHT
        ),
        REFUSED,
    ),
    "a range of letters": (_once(b"HTTP/1.1 206 OK\r\nContent-Range: bytes a-b/c\r\n\r\n"), REFUSED),
    "a length that is negative": (_once(RANGE + b"Content-Length: -1\r\n\r\n" + RIGHT), EITHER),
    "a length of 5,000 digits": (_once(RANGE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + RIGHT), EITHER),
    "two lengths": (_once(RANGE + b"Content-Length: 1000\r\nContent-Length: 7\r\n\r\n" + RIGHT), EITHER),
    "a zip bomb": (_endless(RANGE + b"Content-Encoding: gzip\r\n" + CHUNKED, _chunk(MIB)), REFUSED),
    "garbage": (_once(b"\x16\x03\x01" + MIB), REFUSED),
    "nothing": (_once(b""), REFUSED),
}


def _reading(port: int) -> Callable[[], None]:
    def run() -> None:
        source = ByteRangeReader(timeout_sec=1.5)
        try:
            assert source.read(f"http://127.0.0.1:{port}/a.tar", 0, LENGTH) == RIGHT
        finally:
            source.close()

    return run


def _indexed() -> None:
    """The size of an index says nothing about how much of it is asked for."""
    size = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-0/1000000000000000\r\n" + CHUNKED
    port = _served(_endless(size, _chunk(MIB)))
    source = ByteRangeReader(timeout_sec=1.5)
    try:
        index_cache.load(f"http://127.0.0.1:{port}/a.tar", source, Path("/nonexistent"))
    finally:
        source.close()
    raise AssertionError(DataError)


def _served(answer: Answer) -> int:
    """A server that gives every request this answer; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while b"\r\n\r\n" in connection.recv(65536):
                    for piece in answer():
                        connection.sendall(piece)
            except OSError:
                return

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]
