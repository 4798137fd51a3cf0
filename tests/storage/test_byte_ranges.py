"""Byte ranges from files, servers and fsspec: the right bytes, or a DataError in time."""

import contextlib
import errno
import itertools
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from processes import wait_for
from range_server import RangeServer
from shards import numbered_shard, tar_bytes

from distgan.data.index_cache import load, summary
from distgan.data.shard_index import build, scan
from distgan.errors import DataError
from distgan.storage import backends
from distgan.storage import byte_ranges as module
from distgan.storage.byte_ranges import CHUNK, ByteRangeReader
from distgan.storage.urls import is_local, local_path, public, public_text

BYTES = np.random.default_rng(0).bytes(5 * CHUNK + 1234)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer({"/a.tar": BYTES}) as running:
        yield running


@pytest.fixture
def open_source() -> Iterator[Callable[..., ByteRangeReader]]:
    """Sources that are closed after the test."""
    sources: list[ByteRangeReader] = []

    def make(**options: float) -> ByteRangeReader:
        sources.append(ByteRangeReader(**options))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without their waiting."""
    monkeypatch.setattr(module, "PAUSE_SEC", 0.005)


@pytest.fixture(params=["file", "file://", "http", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same bytes at each kind of address."""
    if request.param == "http":
        with RangeServer({"/a.tar": BYTES}) as running:
            yield f"{running.address}/a.tar"
    elif request.param == "memory":
        files = fsspec.filesystem("memory")
        files.pipe_file("/test/a.tar", BYTES)
        yield "memory://test/a.tar"
        files.rm_file("/test/a.tar")
    else:
        (tmp_path / "a.tar").write_bytes(BYTES)
        yield str(tmp_path / "a.tar") if request.param == "file" else f"file://{tmp_path}/a.tar"


RANGES = [(0, 1), (0, len(BYTES)), (CHUNK - 1, 2), (CHUNK, CHUNK), (3, 3 * CHUNK), (len(BYTES) - 1, 1), (5, 0)]


def test_every_kind_of_address_gives_the_same_bytes(url: str, open_source: Callable[..., ByteRangeReader]) -> None:
    source = open_source()
    assert source.size(url) == len(BYTES)
    for start, length in RANGES:
        assert source.read(url, start, length) == BYTES[start : start + length]
        assert source.cached(url, start, length) == BYTES[start : start + length]
    assert source.retries == 0


def test_many_threads_read_the_same_bytes(url: str, open_source: Callable[..., ByteRangeReader]) -> None:
    source, rng = open_source(cache_bytes=2 * CHUNK), np.random.default_rng(1)
    ranges = [(int(a), int(b)) for a, b in zip(rng.integers(0, 3 * CHUNK, 200), rng.integers(1, 2 * CHUNK, 200))]
    with ThreadPoolExecutor(8) as pool:
        for (start, length), got in zip(ranges, pool.map(lambda r: source.cached(url, *r), ranges)):
            assert got == BYTES[start : start + length]


@pytest.mark.parametrize("read", ["read", "cached"])
@pytest.mark.parametrize("start", [len(BYTES) - 1, len(BYTES)])
def test_reads_beyond_the_end_are_refused(
    read: str, start: int, url: str, open_source: Callable[..., ByteRangeReader]
) -> None:
    with pytest.raises(DataError, match=r"a\.tar"):
        getattr(open_source(timeout_sec=0.1), read)(url, start, 10)


# Local files.


def test_missing_and_forbidden_files(tmp_path: Path, open_source: Callable[..., ByteRangeReader]) -> None:
    source = open_source()
    for action in (source.size, lambda url: source.read(url, 0, 1), lambda url: source.cached(url, 0, 1)):
        with pytest.raises(DataError, match=r"none\.tar: No such file"):
            action(f"{tmp_path}/none.tar")
        with pytest.raises(DataError, match="directory"):
            action(str(tmp_path))
    source.prefetch(f"{tmp_path}/none.tar", 0, 10)  # a hint: the read will tell


def test_a_file_that_shrinks_is_an_error_at_once(tmp_path: Path, open_source: Callable[..., ByteRangeReader]) -> None:
    path, source = tmp_path / "a.tar", open_source()
    path.write_bytes(BYTES)
    assert source.size(str(path)) == len(BYTES)
    os.truncate(path, 100)
    with pytest.raises(DataError, match="shorter than when it was indexed"):
        source.read(str(path), 50, 100)


def test_more_files_than_are_kept_open(tmp_path: Path, open_source: Callable[..., ByteRangeReader]) -> None:
    paths = [tmp_path / f"{i}.tar" for i in range(150)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    source, before = open_source(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(2):
        assert [source.read(str(path), 0, 1)[0] for path in paths] == list(range(150))
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 128


def test_few_file_descriptors_do(tmp_path: Path, open_source: Callable[..., ByteRangeReader]) -> None:
    """Where no more files can be opened, those that are open are given up for the next one."""
    paths = [tmp_path / f"{i}.tar" for i in range(20)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    source, before = open_source(), resource.getrlimit(resource.RLIMIT_NOFILE)
    source.read(str(paths[0]), 0, 1)
    spare = os.dup(0)
    os.close(spare)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 3, before[1]))
    try:
        assert [source.read(str(path), 0, 1)[0] for path in paths] == list(range(20))
        source.close()
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(DataError, match="ulimit"):
            open_source().read(str(paths[0]), 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


@pytest.mark.parametrize(("number", "retried"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False)])
def test_faults_of_a_file_system_are_retried_if_they_may_pass(
    number: int,
    retried: bool,
    tmp_path: Path,
    open_source: Callable[..., ByteRangeReader],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, source, faults = tmp_path / "a.tar", open_source(), iter([1, 1])
    path.write_bytes(BYTES)
    pread = os.pread

    def failing(*arguments: int) -> bytes:
        if next(faults, None):
            raise OSError(number, os.strerror(number))
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    if retried:
        assert source.read(str(path), 5, 5) == BYTES[5:10]
        assert source.retries == 2
    else:
        with pytest.raises(DataError, match=os.strerror(number)):
            source.read(str(path), 5, 5)
        assert source.retries == 0


# Servers.

LENGTH = 2 * CHUNK
PASSING = {
    "503 three times": ["503"] * 3,
    "every status worth a retry": ["408", "425", "429", "500", "502", "503", "504"],
    "cut": ["cut 1000"],
    "cut at once": ["cut 0"],
    "cut again and again": [f"cut {n}" for n in (1, 99_999, 0, 7, 300_000)],
    "reset": ["reset", "reset"],
    "short answers": ["short 512", "short 1"],
    "cut, then 503, then short": ["cut 5", "503", "short 100"],
    "redirect": [],
}


@pytest.mark.parametrize("name", PASSING)
def test_passing_faults_end_in_the_right_bytes(
    name: str, server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url = f"{server.address}{'/moved' if name == 'redirect' else ''}/a.tar"
    for read in ("read", "cached"):
        source = open_source()
        assert source.size(url) == len(BYTES)
        server.fail(PASSING[name])
        assert getattr(source, read)(url, 1000, LENGTH) == BYTES[1000 : 1000 + LENGTH]
        assert source.retries == len(PASSING[name])


def test_a_cut_answer_is_continued_where_it_ended(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    source = open_source()
    server.fail(["cut 1000", "503", "cut 24"])
    source.read(f"{server.address}/a.tar", 0, 5000)
    assert [start for _, start, _ in server.ranges] == [0, 1000, 1000, 1024]


@pytest.mark.parametrize(
    ("fault", "message"),
    {
        "404": "HTTP status 404",
        "403": "HTTP status 403",
        "whole": "does not answer range requests",
        "no total": "do not give the size",
        "416": "shorter than when it was indexed",
        "long 10": "another range",
        "shifted 512": "another range",
    }.items(),
)
@pytest.mark.parametrize("read", ["read", "cached"])
def test_lasting_faults_are_told_at_once(
    fault: str, message: str, read: str, server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.size(url)
    server.fail(itertools.repeat(fault))
    with pytest.raises(DataError, match=message) as caught:
        getattr(source, read)(url, 1000, 2000)
    assert str(caught.value).startswith(url)
    assert source.retries == 0


@pytest.mark.parametrize("fault", ["503", "cut 0", "reset", "stall 10", "trickle", "short 1"])
@pytest.mark.parametrize("read", ["read", "cached"])
def test_faults_that_stay_end_at_the_deadline(
    fault: str, read: str, server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url, source = f"{server.address}/a.tar", open_source(timeout_sec=0.5)
    source.size(url)
    server.fail(itertools.repeat(fault))
    with pytest.raises(DataError, match=r"not readable within data\.timeout_sec=0\.5"):
        getattr(source, read)(url, 0, LENGTH)


def test_a_fault_does_not_start_the_clock_again(
    open_source: Callable[..., ByteRangeReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still between two events."""
    now, source = [0.0], open_source(timeout_sec=1)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Backend:
        def pieces(self, url: str, start: int, length: int) -> Iterator[bytes]:
            if start == 0 and now[0] == 0:
                now[0] += 0.7
                raise ConnectionError("it was silent")
            for _ in range(length):
                now[0] += 0.1
                yield b"x"

    source._remote["s3"] = Backend()
    with pytest.raises(DataError, match="not readable within"):
        source.read("s3://bucket/a.tar", 0, LENGTH)
    assert now[0] == pytest.approx(1.1)  # the first look at the clock after the deadline


def test_a_stall_that_passes_is_waited_out(
    server: RangeServer, open_source: Callable[..., ByteRangeReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, source = f"{server.address}/a.tar", open_source(timeout_sec=20)
    monkeypatch.setattr(module, "STALL_SEC", 0.2)
    server.fail(["stall 1000"])
    assert source.read(url, 0, LENGTH) == BYTES[:LENGTH]
    assert source.retries >= 1  # on a busy machine, a good answer may stall too


def test_no_server(open_source: Callable[..., ByteRangeReader]) -> None:
    with RangeServer({}) as gone:
        address = gone.address
    with pytest.raises(DataError, match="not readable within") as caught:
        open_source(timeout_sec=0.1).size(f"{address}/a.tar?token=SECRET")
    assert "SECRET" not in str(caught.value)


def test_a_server_that_does_not_answer_is_told_once_and_waited_for_once(
    open_source: Callable[..., ByteRangeReader],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(module, "WARN_AFTER_SEC", 0.2)
    with RangeServer({}) as gone:
        address = gone.address
    asked, get = [], backends.Http._get
    monkeypatch.setattr(backends.Http, "_get", lambda self, url, *range: asked.append(url) or get(self, url, *range))
    with pytest.raises(DataError, match=r"a\.tar.*: not readable within data\.timeout_sec=1"):
        summary(f"{address}/a.tar?token=SECRET", open_source(timeout_sec=1), tmp_path)
    assert len(set(asked)) == 1  # the index beside it; the shard itself is not waited for too
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"{address}/a.tar")
    assert "retrying for 1 s at most" in line or "retrying for 0 s at most" in line
    assert "SECRET" not in line


@pytest.mark.parametrize("read", ["read", "cached"])
def test_a_file_that_changed_its_size_is_an_error_at_once(
    read: str, server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    server.files["/a.tar"] = BYTES + b"x"
    with pytest.raises(DataError, match=f"has {len(BYTES) + 1} bytes now, {len(BYTES)} when it was indexed"):
        getattr(source, read)(url, 0, 10)


def test_index_of_a_served_shard(
    server: RangeServer, open_source: Callable[..., ByteRangeReader], own_cache: Path
) -> None:
    shard = numbered_shard(range(40), size=64)
    server.files |= {"/000.tar": shard, "/001.tar": shard, "/001.tar.index": scan(shard, len(shard)).to_bytes()}
    source, url = open_source(), f"{server.address}/000.tar"
    server.fail(["", "503", "cut 2000", "cut 1024"])  # 1024: a border between members
    assert build(url, source).summary() == scan(shard, len(shard)).summary()
    for name in ("000.tar", "001.tar"):
        url = f"{server.address}/{name}"
        assert load(url, source, own_cache).summary() == scan(shard, len(shard)).summary()
    bytes_asked = sum(stop - start for path, start, stop in server.ranges if path == "/001.tar")
    assert bytes_asked == 0  # its published index told all
    server.ranges.clear()
    load(url, open_source(), own_cache)
    size, headers = ("/001.tar", 0, 1), [("/001.tar", 0, 2048), ("/001.tar", 79872, 81920)]
    assert server.ranges == [size, *headers]  # kept in the cache; the first and the last sample lie there still


def test_a_large_header_walk_reads_each_byte_once(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    shard = tar_bytes((f"{i:05d}.jpg", BYTES[: 50_000 + i]) for i in range(400))
    server.files["/big.tar"] = shard
    assert len(build(f"{server.address}/big.tar", open_source()).first) == 400
    assert sum(stop - start for _, start, stop in server.ranges) <= 1.01 * len(shard)
    assert len(server.ranges) <= 5  # 8 MiB at a time


# The cache of remote bytes.


def test_neighbouring_chunks_are_one_request(server: RangeServer, open_source: Callable[..., ByteRangeReader]) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    source.prefetch(url, 100, 3 * CHUNK)
    assert source.cached(url, 100, 3 * CHUNK) == BYTES[100 : 100 + 3 * CHUNK]
    assert [r[1:] for r in server.ranges] == [(0, 4 * CHUNK)]
    source.cached(url, 50, 4 * CHUNK)  # one chunk more
    assert [r[1:] for r in server.ranges[1:]] == [(4 * CHUNK, 5 * CHUNK)]
    source.cached(url, 5 * CHUNK, 1234)  # the last one is shorter
    assert [r[1:] for r in server.ranges[2:]] == [(5 * CHUNK, len(BYTES))]
    for start, length in RANGES:
        source.cached(url, start, length)
    assert len(server.ranges) == 3


def test_a_gap_in_the_cache_is_filled_by_its_own_request(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    source.cached(url, 2 * CHUNK, 1)
    assert source.cached(url, 0, len(BYTES)) == BYTES
    expected = [(2 * CHUNK, 3 * CHUNK), (0, 2 * CHUNK), (3 * CHUNK, len(BYTES))]
    assert sorted(r[1:] for r in server.ranges) == sorted(expected)


def test_readers_of_one_chunk_share_one_request(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    server.fail(["503"])  # gives the others time to come
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: source.cached(url, 5, 10), range(16))) == {BYTES[5:15]}
    assert len(server.ranges) == 2


def test_the_cache_forgets_what_was_not_used_for_longest(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    url, source = f"{server.address}/a.tar", open_source(cache_bytes=3 * CHUNK)
    source.expect(url, len(BYTES))
    for chunk in (0, 1, 2, 0, 3, 0, 2, 1):  # 3 drops 1; the second 1 drops 3
        assert source.cached(url, chunk * CHUNK, 10) == BYTES[chunk * CHUNK :][:10]
    assert [start // CHUNK for _, start, _ in server.ranges] == [0, 1, 2, 3, 1]


def test_a_read_larger_than_the_cache_is_right(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    source = open_source(cache_bytes=0)
    assert source.cached(f"{server.address}/a.tar", 10, len(BYTES) - 20) == BYTES[10:-10]


def test_connections_are_used_again(server: RangeServer, open_source: Callable[..., ByteRangeReader]) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    for start in range(0, 5000, 100):
        source.read(url, start, 100)
    assert len(server.ranges) == 50
    assert server.connections == 1


def test_an_error_is_kept_for_nobody(server: RangeServer, open_source: Callable[..., ByteRangeReader]) -> None:
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    server.fail(["404"])
    with pytest.raises(DataError, match="404"):
        source.cached(url, 0, 10)
    assert source.cached(url, 0, 10) == BYTES[:10]


def test_a_fetch_that_fails_at_once_still_tells_its_reader(
    server: RangeServer, open_source: Callable[..., ByteRangeReader]
) -> None:
    """A busy machine may let a reader go on only when the chunk that it asked for has failed and is forgotten."""
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))
    server.fail(["404"])
    reader, lock, asked = threading.current_thread(), source._lock, threading.Event()

    class Delaying:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            if threading.current_thread() is reader and not asked.is_set():
                asked.set()
                wait_for(lambda: server.ranges and not source._chunks)

    source._lock = Delaying()
    with pytest.raises(DataError, match="404"):
        source.cached(url, 0, 10)
    assert len(server.ranges) == 1


def test_an_unforeseen_error_reaches_the_reader(
    server: RangeServer, open_source: Callable[..., ByteRangeReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader never waits for a chunk that nobody will bring."""
    url, source = f"{server.address}/a.tar", open_source()
    source.expect(url, len(BYTES))

    def broken(*_: object) -> bytes:
        raise MemoryError("unforeseen")

    monkeypatch.setattr(source, "read", broken)
    with pytest.raises(MemoryError, match="unforeseen"):
        source.cached(url, 0, 10)


def test_close_wakes_the_readers(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for bytes when a source is closed gets an error, and no thread of the source stays behind."""
    monkeypatch.setattr(module, "PAUSE_SEC", 20)
    before = set(threading.enumerate())
    url, source = f"{server.address}/a.tar", ByteRangeReader(connections=1, timeout_sec=30)
    source.expect(url, len(BYTES))
    server.fail(itertools.repeat("503"))
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(source.cached, url, chunk * CHUNK, 10) for chunk in range(4)]
        while not server.ranges:
            time.sleep(0.01)
        source.close()
        for read in reads:
            with pytest.raises(DataError, match="closed"):
                read.result(timeout=5)
    with pytest.raises(DataError, match="closed"):
        source.cached(url, 0, 10)
    assert len(server.ranges) == 1  # what had not begun was not begun any more
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("distgan-fetch") for thread in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# fsspec.


def test_missing_object_and_unknown_protocol(open_source: Callable[..., ByteRangeReader]) -> None:
    source = open_source()
    with pytest.raises(DataError, match=r"memory://test/none\.tar"):
        source.size("memory://test/none.tar")
    with pytest.raises(DataError, match="nosuch"):
        source.size("nosuch://bucket/a.tar")
    assert source.retries == 0


def test_faults_of_a_driver_are_retried(
    open_source: Callable[..., ByteRangeReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/test/a.tar", BYTES)
    faults = iter([RuntimeError("driver"), TimeoutError("driver"), KeyError("driver")])
    cat_file = type(files).cat_file

    def failing(self: object, *arguments: object, **options: object) -> bytes:
        for fault in faults:
            raise fault
        return cat_file(self, *arguments, **options)

    monkeypatch.setattr(type(files), "cat_file", failing)
    source = open_source()
    assert source.cached("memory://test/a.tar", 7, 70) == BYTES[7:77]
    assert source.retries == 3


# Addresses.


@pytest.mark.parametrize(
    ("url", "shown"),
    {
        "https://user:password@host:8080/a/b.tar?token=SECRET#part": "https://host:8080/a/b.tar",
        "https://host/a.tar": "https://host/a.tar",
        "s3://bucket/{000..010}.tar": "s3://bucket/{000..010}.tar",
        "https://user:p@ss@host/a.tar": "https://host/a.tar",
        "/data/a?b#c.tar": "/data/a?b#c.tar",
        "file:///data/a.tar": "/data/a.tar",
        "data/a.tar": "data/a.tar",
    }.items(),
)
def test_public_addresses_hold_no_secret(url: str, shown: str) -> None:
    assert public(url) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    {
        "data.shards=https://user:S@ECRET@host/{0..9}.tar?k=SECRET": "data.shards=https://host/{0..9}.tar",
        "data.shards=[https://u:SECRET@h/a.tar,s3://k:SECRET@b/c.tar?x=SECRET,d.tar]": (
            "data.shards=[https://h/a.tar,s3://b/c.tar"  # a secret may hold a comma and a bracket
        ),
        "s3://u:SECRET@b/a.tar?k=SECRET::s3://u:SECRET@b/c.tar": "s3://b/a.tar::s3://b/c.tar",
        "file:///data/a?b.tar": "/data/a?b.tar",
        "data/a?[0-9].tar": "data/a?[0-9].tar",
        "wandb.notes=who? me@home": "wandb.notes=who? me@home",
    }.items(),
)
def test_public_texts_hold_no_secret(text: str, shown: str) -> None:
    assert public_text(text) == shown


def test_local_addresses() -> None:
    assert [is_local(url) for url in ("a.tar", "/a.tar", "file:///a.tar", "http://h/a", "s3://b/a")] == [1, 1, 1, 0, 0]
    assert local_path("file:///x/a.tar") == local_path("/x/a.tar") == "/x/a.tar"
