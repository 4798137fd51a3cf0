"""The cache on a node's disk: the right bytes whatever befalls its files, within its limit, for all processes."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import environment
from range_server import RangeServer

from distgan.errors import DataError
from distgan.storage import byte_ranges as source_module
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.disk_cache import CHECKSUM, EMPTIED, DiskCache

CHUNK = 1000
BYTES = np.random.default_rng(0).bytes(20 * CHUNK + 123)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(source_module, "CHUNK", CHUNK)
    with RangeServer({"/a.tar": BYTES, "/b/a.tar": BYTES[::-1]}) as running:
        yield running


def read(folder: Path, url: str, start: int = 0, length: int = len(BYTES), limit: int = 10**6) -> bytes:
    """What a process that begins now gets."""
    source = ByteRangeReader(disk=DiskCache(folder, limit))
    source.expect(url, len(BYTES))
    try:
        return source.cached(url, start, length)
    finally:
        source.close()
        while source._pool is not None and any(thread.is_alive() for thread in source._pool._threads):
            time.sleep(0.001)  # what it stores is stored


def chunks_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def bytes_in(folder: Path) -> int:
    """Of the chunks, while other processes may drop them."""
    total = 0
    for path in chunks_in(folder):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_later_process_fetches_nothing(tmp_path: Path, server: RangeServer) -> None:
    url = f"{server.address}/a.tar?token=SECRET"
    assert read(tmp_path / "new" / "cache", url) == BYTES
    assert len(server.ranges) == 1
    assert read(tmp_path / "new" / "cache", url) == BYTES
    assert read(tmp_path / "new" / "cache", url, 1500, 3000) == BYTES[1500:4500]
    assert len(server.ranges) == 1
    assert not any("SECRET" in str(path) or "a.tar" in str(path) for path in tmp_path.rglob("*"))
    assert read(tmp_path / "new" / "cache", f"{server.address}/b/a.tar") == BYTES[::-1]  # another shard of that name


def test_what_is_not_at_hand_is_fetched_in_ranges(tmp_path: Path, server: RangeServer) -> None:
    url = f"{server.address}/a.tar"
    for start in (3, 4, 9):
        read(tmp_path, url, start * CHUNK, 1)
    server.ranges.clear()
    assert read(tmp_path, url, 0, 12 * CHUNK) == BYTES[: 12 * CHUNK]
    assert [r[1:] for r in server.ranges] == [(0, 3 * CHUNK), (5 * CHUNK, 9 * CHUNK), (10 * CHUNK, 12 * CHUNK)]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "longer", "another chunk", "gone", "a folder"])
def test_damaged_files_are_fetched_again(damage: str, tmp_path: Path, server: RangeServer) -> None:
    url = f"{server.address}/a.tar"
    read(tmp_path, url)
    path, other = chunks_in(tmp_path)[3:5]
    content = path.read_bytes()
    if damage in ("gone", "a folder"):
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut": content[: CHUNK // 2],
                "empty": b"",
                "flipped": bytes([content[0] ^ 1]) + content[1:],
                "longer": content + b"\0",
                "another chunk": other.read_bytes()[: CHUNK // 2] + content[CHUNK // 2 :],
            }[damage]
        )
    if damage == "a folder":
        path.mkdir()
    server.ranges.clear()
    assert read(tmp_path, url) == BYTES
    assert len(server.ranges) == 1
    assert read(tmp_path, url) == BYTES
    assert len(server.ranges) == (2 if damage == "a folder" else 1)


def test_a_shard_of_another_size_is_another_shard(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10**6)
    cache.store("http://h/a.tar", 5000, 0, BYTES[:CHUNK])
    assert cache.load("http://h/a.tar", 5000, 0, CHUNK) == BYTES[:CHUNK]
    assert cache.load("http://h/a.tar", 5001, 0, CHUNK) is None
    assert cache.load("http://h/a.tar", 5000, 0, CHUNK - 1) is None
    assert cache.load("http://h/a.tar", 5000, 1, CHUNK) is None


def test_the_limit_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    limit = 40 * (CHUNK + CHECKSUM)
    cache, most = DiskCache(tmp_path, limit), 0
    for number in range(200):
        cache.store("u", 10**6, number, BYTES[number:][:CHUNK])
        assert cache.load("u", 10**6, 0, CHUNK) == BYTES[:CHUNK]  # always used again
        most = max(most, bytes_in(tmp_path))
        os.utime(cache._path("u", 10**6, CHUNK, number), (number, number))  # clocks are coarse
    assert limit * 0.7 < most <= limit
    there = [n for n in range(200) if cache.load("u", 10**6, n, CHUNK) is not None]
    assert there[0] == 0
    assert there[1:] == list(range(there[1], 200))
    assert 25 <= len(there) <= 40


def test_a_disk_that_is_full_is_told_once(tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url, cache = f"{server.address}/a.tar", DiskCache(tmp_path, 10**6)
    source, write = ByteRangeReader(disk=cache), Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source.expect(url, len(BYTES))
    assert source.cached(url, 0, CHUNK) == BYTES[:CHUNK]
    while not chunks_in(tmp_path):
        time.sleep(0.001)
    monkeypatch.setattr(Path, "write_bytes", full)
    assert source.cached(url, 0, len(BYTES)) == BYTES
    source.close()
    while any(thread.is_alive() for thread in source._pool._threads):
        time.sleep(0.001)
    (told,) = cache.pop_warnings()
    assert "No space left" in told
    assert "data.cache_dir" in told
    assert cache.pop_warnings() == []
    assert [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == [
        CHUNK + CHECKSUM
    ]
    assert cache.load(url, len(BYTES), 0, CHUNK) == BYTES[:CHUNK]  # what is there goes on to serve


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.cache_dir=.*file"):
        DiskCache(tmp_path / "file" / "cache", 100)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from distgan.storage.disk_cache import DiskCache
cache, rng = DiskCache(Path(sys.argv[1]), int(sys.argv[2])), np.random.default_rng(int(sys.argv[3]))
print("ready", flush=True)
while True:
    number = int(rng.integers(0, 300))
    expected = np.random.default_rng(number).bytes(1000)
    data = cache.load("u", 10**6, number, 1000)
    assert data in (None, expected), number
    if data is None:
        cache.store("u", 10**6, number, expected)
    assert cache.pop_warnings() == []
"""


@pytest.mark.multi
def test_processes_share_it_and_may_be_killed(tmp_path: Path) -> None:
    """Four of them, in one cache that is too small; one is killed at any moment and followed by another."""
    folder, limit = tmp_path / "cache", 150 * (1000 + CHECKSUM)

    def start(seed: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(limit), str(seed)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    writers = [start(seed) for seed in range(4)]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"ready\n"
        for seed in range(4, 7):
            time.sleep(0.2)
            assert bytes_in(folder) <= limit
            oldest = writers.pop(0)
            oldest.send_signal(signal.SIGKILL)
            _, errors = oldest.communicate()
            assert oldest.returncode == -signal.SIGKILL, errors.decode()
            writers.append(start(seed))
        time.sleep(0.2)
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    cache = DiskCache(folder, limit)
    found = {n: cache.load("u", 10**6, n, 1000) for n in range(300)}
    assert sum(data is not None for data in found.values()) > 20
    assert all(data in (None, np.random.default_rng(n).bytes(1000)) for n, data in found.items())


def test_the_limit_holds_while_a_process_that_makes_room_is_held_up(tmp_path: Path) -> None:
    """However many write meanwhile: each only its part, and again once the way is free."""
    limit, chunk = 1000 * (100 + CHECKSUM), BYTES[:100]
    caches = [DiskCache(tmp_path, limit) for _ in range(16)]
    for i in range(2000):
        caches[i % 16].store("u", 10**6, i, chunk)
    with open(tmp_path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for i in range(2000, 6000):
            caches[i % 16].store("u", 10**6, i, chunk)
        assert limit * EMPTIED <= bytes_in(tmp_path) <= limit
        assert caches[0].load("u", 10**6, 5999, len(chunk)) is None
        fcntl.flock(lock, fcntl.LOCK_UN)
    caches[0].store("u", 10**6, 5999, chunk)
    assert caches[0].load("u", 10**6, 5999, len(chunk)) == chunk
    assert all(cache.pop_warnings() == [] for cache in caches)


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10**6)
    cache.store("u", 10**6, 0, BYTES[:CHUNK])
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    old, new = folder / ".1-3e8.77.abcd", folder / ".2-3e8.78.abcd"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    DiskCache(tmp_path, 10**6).store("u", 10**6, 1, BYTES[:CHUNK])
    assert new.exists()
    assert not old.exists()


def test_many_threads_get_the_right_bytes(tmp_path: Path, server: RangeServer) -> None:
    url, rng = f"{server.address}/a.tar", np.random.default_rng(1)
    disk = DiskCache(tmp_path, 8 * CHUNK)
    source = ByteRangeReader(cache_bytes=0, disk=disk)
    source.expect(url, len(BYTES))
    ranges = [(int(a), int(b)) for a, b in zip(rng.integers(0, 15 * CHUNK, 200), rng.integers(1, 5 * CHUNK, 200))]
    with ThreadPoolExecutor(8) as pool:
        for (start, length), got in zip(ranges, pool.map(lambda r: source.cached(url, *r), ranges)):
            assert got == BYTES[start : start + length]
    source.close()
