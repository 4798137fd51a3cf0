"""Shards as a data set and a stream: the plan's order with the packed pixels, whatever reads them, from any start."""

import itertools
import os
import pickle
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from range_server import RangeServer
from shards import image_bytes, numbered_pixels, numbered_shard, numbers_of, tar_bytes, write_shards
from streams import make_stream

from distgan.cli.main import main
from distgan.data import index_cache, loader, shard_index
from distgan.data.dataset import Dataset, DatasetOptions, RankInfo
from distgan.data.decode import DecodeOptions
from distgan.data.encode import PackOptions
from distgan.data.loader import Stream
from distgan.data.pack import pack
from distgan.data.resize import fit
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.errors import DataError
from distgan.image_spec import square
from distgan.storage import byte_ranges as source_module
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.disk_cache import DiskCache

COUNTS = [13, 0, 7, 30, 1]  # 51 samples
LAYOUT = ShuffleLayout(lanes=8, block=4, window=3)
Taken = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # numbers, labels, samples, positions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", COUNTS)
    return tmp_path / "shards"


@pytest.fixture
def start_stream() -> Iterator[Callable[..., Stream]]:
    """Streams that are closed after the test, with a check that none of their threads stays."""
    streams: list[Stream] = []

    def start(data: Dataset, **options: object) -> Stream:
        defaults = {"batch": 8, "resolution": 16, "plan": ShuffleOrder(data.counts, LAYOUT, seed=3)}
        streams.append(make_stream(data, **(defaults | options)))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()
        stream.dataset.source.close()
    assert no_threads()


EARLIER: set[threading.Thread] = set()  # threads that other tests left behind


@pytest.fixture(autouse=True)
def note_threads() -> None:
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def no_threads() -> bool:
    """Whether the threads of this test's streams and sources end soon."""
    deadline = time.monotonic() + 60  # a busy machine may take its time
    while any(thread.name.startswith("distgan-") for thread in set(threading.enumerate()) - EARLIER):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def open_data(folder: Path | str, **options: object) -> Dataset:
    return Dataset(find_shards(str(folder)), ByteRangeReader(), DatasetOptions(**options))


def take(streams: Sequence[Stream], num: int) -> Taken:
    """The next batches of all ranks, put together as one run of samples."""
    taken: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(num):
        for stream in streams:
            batch = next(stream)
            for column, value in zip(taken, (numbers_of(batch.images), batch.labels, batch.samples, batch.positions)):
                column.append(value.copy())
    numbers, labels, samples, positions = (np.concatenate(column) for column in taken)
    return numbers, labels, samples, positions


def same(a: Taken, b: Taken) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b))


# The order.


@pytest.mark.parametrize(
    ("world", "local", "threads", "prefetch"),
    [(1, 8, 1, 1), (1, 8, 4, 3), (1, 1, 3, 1), (2, 4, 2, 2), (3, 5, 1, 8), (4, 2, 3, 1), (1, 60, 2, 2)],
)
@pytest.mark.parametrize("start", [0, 1, 47, 8 * 51, 10**12])
def test_batches_are_the_plan_with_the_packed_pixels(
    world: int, local: int, threads: int, prefetch: int, start: int, folder: Path, start_stream: Callable[..., Stream]
) -> None:
    data, num = open_data(folder), -(-120 // (world * local))
    streams = [
        start_stream(data, batch=world * local, rank=r, world=world, threads=threads, prefetch=prefetch, start=start)
        for r in range(world)
    ]
    numbers, labels, samples, positions = take(streams, num)
    np.testing.assert_array_equal(positions, start + np.arange(num * world * local))
    ids = ShuffleOrder(np.array(COUNTS), LAYOUT, seed=3).ids(positions)
    np.testing.assert_array_equal(samples, ids)
    np.testing.assert_array_equal(numbers, ids)  # the shards are numbered through, as the ids are
    np.testing.assert_array_equal(labels, ids % 7)


def test_every_epoch_shows_every_picture_once(folder: Path, start_stream: Callable[..., Stream]) -> None:
    stream = start_stream(open_data(folder), batch=17)  # 3 batches are an epoch
    for _ in range(4):
        assert sorted(take([stream], 3)[0].tolist()) == list(range(51))


@pytest.mark.parametrize(
    "layout", [ShuffleLayout(1, 1, 1), ShuffleLayout(300, 1, 64), ShuffleLayout(5, 64, 2), ShuffleLayout(16, 3, 50)]
)
def test_any_layout_is_read(layout: ShuffleLayout, folder: Path, start_stream: Callable[..., Stream]) -> None:
    data = open_data(folder)
    plan = ShuffleOrder(data.counts, layout, seed=0)
    numbers, _, _, positions = take([start_stream(data, plan=plan)], 20)
    np.testing.assert_array_equal(numbers, plan.ids(positions))


def test_batches_hold_until_the_next_one(folder: Path, start_stream: Callable[..., Stream]) -> None:
    made: list[np.ndarray] = []

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        made.append(np.zeros(shape, np.uint8))
        return made[-1]

    stream = start_stream(open_data(folder), prefetch=3, allocate=allocate)
    for _ in range(20):
        batch = next(stream)
        before = batch.images.copy()
        time.sleep(0.002)  # the stream runs ahead, into other buffers
        np.testing.assert_array_equal(batch.images, before)
        assert any(batch.images is buffer for buffer in made)
    assert len(made) == 4


def test_read_and_examples_of_a_data_set(folder: Path) -> None:
    data = open_data(folder, labels=True)
    assert numbers_of(np.stack([data.read(i, DecodeOptions(square(16), "area")) for i in range(51)])).tolist() == list(
        range(51)
    )
    wanted = [0, 1, 2, 3, 4, 5, 6] * 4
    chosen = data.fixed_samples(len(wanted), 0, wanted)
    assert [sample % 7 for sample in chosen] == wanted
    assert chosen == data.fixed_samples(len(wanted), 0, wanted) != data.fixed_samples(len(wanted), 1, wanted)
    assert len(set(data.fixed_samples(20, 0))) == 20


def test_a_damaged_example_is_white(tmp_path: Path) -> None:
    data = image_bytes(np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8), "JPEG")
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.jpg": data[: len(data) // 2]}))  # its upper half can be decoded
    assert (open_data(tmp_path).read(0, DecodeOptions(square(128), "area", "center")) == 255).all()


def test_keys_of_samples(folder: Path) -> None:
    data = open_data(folder)
    assert data.key(0) == (str(folder / "000.tar"), "000000")
    assert data.key(13) == (str(folder / "002.tar"), "000013")
    assert data.key(50) == (str(folder / "004.tar"), "000050")


# Labels and sizes.


def test_samples_without_labels(tmp_path: Path, start_stream: Callable[..., Stream]) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"{i}.png": image_bytes(numbered_pixels(i)) for i in range(9)}))
    data = open_data(tmp_path)
    assert not data.has_labels
    assert data.num_classes == 0
    assert (take([start_stream(data)], 3)[1] == -1).all()


def test_other_sizes_are_resized_on_the_way(tmp_path: Path, start_stream: Callable[..., Stream]) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((16, 16), (32, 32), (20, 50), (9, 8))]
    files = {f"{i}.png": image_bytes(picture) for i, picture in enumerate(pictures)}
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    for filter, crop in (("area", "center"), ("lanczos", "stretch")):
        stream = start_stream(open_data(tmp_path), batch=4, filter=filter, crop=crop, prefetch=1)
        batch = next(stream)
        for image, sample in zip(batch.images, batch.samples):
            np.testing.assert_array_equal(image, fit(pictures[sample], square(16), filter, crop))
        assert stream.num_resized >= 3
        assert any("pack --resolution" in line for line in stream.pop_warnings())
        assert stream.pop_warnings() == []


def test_other_image_formats_and_parts(tmp_path: Path, start_stream: Callable[..., Stream]) -> None:
    """Several kinds of samples in one set, with parts around the picture."""
    members = {}
    for i, suffix in enumerate(["png", "webp", "bmp", "PNG", "tiff"]):
        data = image_bytes(numbered_pixels(i), suffix.upper(), **({"lossless": True} if suffix == "webp" else {}))
        members |= {f"{i}.json": b"{}"} if i % 2 else {}
        members |= {f"{i}.{suffix}": data, f"{i}.txt": b"about it"}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    numbers, _, samples, _ = take([start_stream(open_data(tmp_path), batch=5)], 2)
    np.testing.assert_array_equal(numbers, samples)


# Damaged samples.

DAMAGED = {4, 5, 21, 22, 23, 24, 50}


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", COUNTS, damaged=DAMAGED)
    return tmp_path / "shards"


def standing_in(plan: ShuffleOrder, position: int) -> int:
    """The good sample at a position: its own, or the next of its window, or the next of the order."""
    candidates = itertools.chain([position], plan.replacements(position).tolist(), itertools.count(position + 1))
    ids = (int(plan.ids(np.array(candidate))) for candidate in candidates)
    return next(sample for sample in ids if sample not in DAMAGED)


@pytest.mark.parametrize(
    ("world", "threads", "prefetch", "start"), [(1, 1, 1, 0), (1, 4, 3, 0), (2, 2, 1, 0), (4, 1, 4, 24), (2, 3, 2, 96)]
)
@pytest.mark.parametrize("layout", [LAYOUT, ShuffleLayout(lanes=8, block=4, window=1)], ids=["windows", "single rows"])
def test_substitutes_follow_the_rule(
    layout: ShuffleLayout,
    world: int,
    threads: int,
    prefetch: int,
    start: int,
    damaged_folder: Path,
    start_stream: Callable[..., Stream],
) -> None:
    data = open_data(damaged_folder)
    plan = ShuffleOrder(data.counts, layout, seed=5)
    options = {"plan": plan, "world": world, "threads": threads, "prefetch": prefetch, "max_corrupt_fraction": 0.2}
    streams = [start_stream(data, rank=r, start=start, **options) for r in range(world)]
    numbers, labels, samples, positions = take(streams, 20)
    expected = [standing_in(plan, int(position)) for position in positions]
    assert samples.tolist() == numbers.tolist() == expected
    assert labels.tolist() == [number % 7 for number in expected]


def test_substitutes_are_counted_and_told(damaged_folder: Path, start_stream: Callable[..., Stream]) -> None:
    data = open_data(damaged_folder)
    stream = start_stream(data, batch=17, max_corrupt_fraction=0.2)
    ids = ShuffleOrder(data.counts, LAYOUT, seed=3).ids(np.arange(51)).reshape(3, 17)
    for row in ids:
        assert next(stream).num_replaced == len(DAMAGED & set(row.tolist()))
    assert set(stream.bad) == DAMAGED
    found = stream.pop_corrupt()
    assert len(found) == len(DAMAGED)
    assert any(row["key"] == "000050" and "004.tar" in row["shard"] and "corrupt" in row["reason"] for row in found)
    assert stream.pop_corrupt() == []


@pytest.mark.parametrize(("share", "fine"), [(7 / 51, True), (6 / 51, False), (0, False)])
def test_too_many_damaged_samples_stop_the_stream(
    share: float, fine: bool, damaged_folder: Path, start_stream: Callable[..., Stream]
) -> None:
    stream = start_stream(open_data(damaged_folder), max_corrupt_fraction=share)
    if fine:
        take([stream], 20)
        return
    with pytest.raises(
        DataError, match=r"of 51 samples are corrupt, more than data\.max_corrupt_fraction.*'0000\d\d' in .*tar"
    ):
        take([stream], 20)
    with pytest.raises(DataError, match="max_corrupt_fraction"):  # no batch is passed over
        next(stream)


def test_a_set_without_a_good_sample_ends(tmp_path: Path, start_stream: Callable[..., Stream]) -> None:
    write_shards(tmp_path, [9], damaged=range(9))
    with pytest.raises(DataError, match="no good sample"):
        next(start_stream(open_data(tmp_path), max_corrupt_fraction=1))


# Errors and ends.


@pytest.mark.parametrize("where", ["feeder", "decoder"])
def test_an_error_in_the_background_reaches_the_reader(
    where: str, folder: Path, start_stream: Callable[..., Stream]
) -> None:
    data = open_data(folder)
    if where == "decoder":
        for shard, path in enumerate(sorted(folder.glob("*.tar"))):
            data.located(shard)
            os.truncate(path, 600)
    else:
        for path in [*folder.glob("*.tar*")]:
            path.unlink()
        data.source = ByteRangeReader()
    stream = start_stream(data)
    for _ in range(3):
        with pytest.raises(DataError, match=r"\.tar"):
            while True:
                next(stream)


def test_an_unforeseen_error_reaches_the_reader(
    folder: Path, start_stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data(folder)

    def broken(*_: object) -> bytes:
        raise MemoryError("unforeseen")

    monkeypatch.setattr(data.source, "cached", broken)
    with pytest.raises(MemoryError, match="unforeseen"):
        next(start_stream(data))


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("prefetch", [1, 16])
def test_close_ends_all_threads(taken: int, prefetch: int, folder: Path) -> None:
    data = open_data(folder)
    stream = make_stream(
        data, ShuffleOrder(data.counts, LAYOUT, 0), batch=8, resolution=16, threads=3, prefetch=prefetch
    )
    for _ in range(taken):
        next(stream)
    assert any(thread.name == "distgan-feed" for thread in threading.enumerate())
    stream.close()
    assert no_threads()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


# Shards on a server.


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(source_module, "PAUSE_SEC", 0.005)
    files, first = {}, 0
    for i, count in enumerate(COUNTS):
        files[f"/{i:03d}.tar"] = numbered_shard(range(first, first + count))
        first += count
    with RangeServer(files) as running:
        yield running


def served(server: RangeServer, **options: float) -> Dataset:
    return Dataset(find_shards(server.address + "/{000..004}.tar?key=SECRET"), ByteRangeReader(**options))


@pytest.mark.parametrize("world", [1, 2])
def test_served_shards_give_the_same_batches(
    world: int, server: RangeServer, folder: Path, start_stream: Callable[..., Stream]
) -> None:
    local = take([start_stream(open_data(folder))], 20)
    streams = [start_stream(served(server), rank=r, world=world) for r in range(world)]
    server.fail(["503", "cut 100", "reset", "cut 1024", "short 512"] * 2)
    assert same(take(streams, 20), local)


def test_served_shards_are_fetched_once_and_by_blocks(
    start_stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an epoch no byte comes twice, and there are far fewer requests than samples."""
    monkeypatch.setattr(source_module, "CHUNK", 1024)  # half a sample
    shards = {f"/{i:03d}.tar": numbered_shard(range(200 * i, 200 * i + 200)) for i in range(4)}
    with RangeServer(shards) as server:
        data = Dataset(find_shards(server.address + "/{000..003}.tar"), ByteRangeReader())
        for shard in range(4):
            data.located(shard)  # looks at the first and the last header
        server.ranges.clear()
        plan = ShuffleOrder(data.counts, ShuffleLayout(lanes=32, block=8, window=8), seed=0)
        numbers, _, _, _ = take([start_stream(data, plan=plan, batch=32, prefetch=1)], 24)
        assert len(set(numbers.tolist())) == 768
        asked = list(server.ranges)
    chunks = [(path, at) for path, start, stop in asked for at in range(start // 1024, -(-stop // 1024))]
    assert len(chunks) == len(set(chunks))
    assert len(asked) < 300


def test_what_one_run_fetched_serves_the_next(
    tmp_path: Path, server: RangeServer, start_stream: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs on one rank, then the same on two: a node fetches each byte once."""
    monkeypatch.setattr(source_module, "CHUNK", 1024)
    whole = take([start_stream(served(server))], 14)
    numbers = []
    for world in (1, 2):
        sets = [served(server, disk=DiskCache(tmp_path, 10**7)) for _ in range(world)]
        streams = [start_stream(data, rank=r, world=world, prefetch=1) for r, data in enumerate(sets)]
        for data in sets:
            for shard in range(len(COUNTS)):
                data.located(shard)  # looks at its index and headers
        server.ranges.clear()
        assert same(take(streams, 14), whole)
        for stream in streams:
            stream.close()
            stream.dataset.source.close()
        numbers.append(len(server.ranges))
    assert numbers[0] > 10 * numbers[1]


@pytest.mark.parametrize("fault", ["404", "503", "stall 0", "cut 0", "trickle"])
def test_a_server_that_fails_for_good_ends_the_stream_in_time(
    fault: str, server: RangeServer, start_stream: Callable[..., Stream]
) -> None:
    data = served(server, timeout_sec=2)
    server.fail(itertools.repeat(fault))
    stream = start_stream(data)
    with pytest.raises(DataError, match=r"http://.*tar: ") as caught:
        next(stream)
    assert "SECRET" not in str(caught.value)


def test_a_stream_is_closed_while_its_server_stalls(server: RangeServer) -> None:
    data = served(server, timeout_sec=1)
    server.fail(itertools.repeat("stall 0"))
    stream = make_stream(data, ShuffleOrder(data.counts, LAYOUT, 0), batch=8, resolution=16)
    while len(server.ranges) < 6:
        time.sleep(0.005)
    stream.close()
    data.source.close()
    assert no_threads()


def test_a_served_shard_that_changed_is_an_error(server: RangeServer, start_stream: Callable[..., Stream]) -> None:
    data = served(server)
    server.files = {path: content + b"\0" * 512 for path, content in server.files.items()}
    with pytest.raises(DataError, match="bytes now"):
        next(start_stream(data))


# Which shards there are.


def test_specs_name_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(folder / f"{i:03d}.tar") for i in range(5)]
    assert find_shards(str(folder)) == paths
    assert find_shards(f"file://{folder}") == paths
    assert find_shards(f"{folder}/00[1-3].tar") == paths[1:4]
    assert find_shards(f"{folder}/{{000..004}}.tar") == paths
    assert find_shards(f"{folder}/000.tar::{folder}/{{003,002}}.tar") == [paths[0], paths[3], paths[2]]
    assert find_shards([paths[2], f"{folder}/000.tar"]) == [paths[2], paths[0]]
    assert find_shards("https://host/{08..11}.tar") == [f"https://host/{i:02d}.tar" for i in range(8, 12)]
    monkeypatch.setenv("WDS_DATA", str(folder))  # which is not filled in: it could hold a secret
    with pytest.raises(DataError, match=r"no shard matches .*DATA"):
        find_shards("${DATA}/000.tar")
    monkeypatch.setenv("HOME", str(folder))
    assert find_shards("~/000.tar") == paths[:1]
    monkeypatch.chdir(folder.parent)
    assert find_shards("shards") == [f"shards/{i:03d}.tar" for i in range(5)]


def test_names_with_special_characters_are_files_first(tmp_path: Path) -> None:
    for name in ("a[1].tar", "a{1,2}.tar", "a::b.tar"):
        (tmp_path / name).write_bytes(b"")
        assert find_shards(str(tmp_path / name)) == [str(tmp_path / name)]
    odd = tmp_path / "b[1]"
    write_shards(odd, [1])
    assert find_shards(str(odd)) == [str(odd / "000.tar")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([], "is empty"),
        ("", "no shard matches ''"),
        ("{folder}/none", "no shard matches"),
        ("{folder}/*.zip", "no shard matches"),
        (["{folder}/000.tar", "{folder}/none.tar"], r"no shard matches '.*none\.tar'"),
        ("{folder}/{{000..007}}.tar", r"no shard matches '.*005\.tar'"),
        ("{folder}/${{NO_SUCH_VARIABLE}}.tar", "NO_SUCH_VARIABLE"),
        ("{folder}/{{0..1.tar", "unbalanced braces"),
        (["{folder}", "{folder}/001.tar"], r"001\.tar 2 times"),
        (["{folder}/000.tar", "{folder}/../shards/000.tar"], r"000\.tar 2 times"),
        (["{folder}/000.tar", "file://{folder}/000.tar"], r"000\.tar 2 times"),
        ("s3://user:SECRET@bucket/a.tar::s3://user:SECRET@bucket/a.tar", r"names s3://bucket/a\.tar 2 times"),
    ],
)
def test_specs_that_name_no_shards_or_one_twice(spec: str | list[str], message: str, folder: Path) -> None:
    specs = [item.format(folder=folder) for item in ([spec] if isinstance(spec, str) else spec)]
    with pytest.raises(DataError, match=message):
        find_shards(specs)


def test_a_path_without_shards_is_told_with_what_may_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("faces 1/ant/0.JPG", "zips/a.zip", "texts/a.txt", "made[1]/000.tar"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(b"x")
    for spec, told in (
        ("faces 1", r": it holds images; `distgan pack 'faces 1' OUT` makes shards of them$"),
        ("zips", r"; `distgan pack zips/a\.zip OUT` makes shards of an archive$"),
        ("texts", r"\(seen from [^;:]*\)$"),
        ("text", r"; did you mean texts\?$"),
        (f"{tmp_path}/made", rf"; did you mean {re.escape(str(tmp_path))}/made\[1\]\?$"),
        ("made[1]/00.tar", r"; did you mean made\[1\]/000\.tar\?$"),
        ("made[1]/{000..001}.tar", r"\(seen from [^;:]*\)$"),  # every number is near to another one
        ("nowhere/at/all", r"\(seen from [^;:]*\)$"),
    ):
        with pytest.raises(DataError, match=told):
            find_shards(spec)
    assert main(["index", "text"]) == 3
    assert "did you mean texts?" in capsys.readouterr().err


def test_pipes_need_a_word(folder: Path, tmp_path: Path, own_cache: Path) -> None:
    marker, shard = tmp_path / "it ran", folder / "000.tar"
    url = f"pipe:echo run >> {shlex.quote(str(marker))} && cat {shard}"
    with pytest.raises(DataError, match=r"data\.allow_pipe=true"):
        find_shards(url)
    assert not marker.exists()
    for _ in range(2):
        (path,) = find_shards(url, allow_pipe=True)
        assert Path(path).read_bytes() == shard.read_bytes()
        assert own_cache in Path(path).parents
    assert marker.read_text() == "run\n"  # kept, and not asked for again
    assert Dataset([path], ByteRangeReader()).num_samples == 13


@pytest.mark.parametrize("command", ["cat {shard}; exit 3", "cat /nowhere/at/all", "head -c 5000 {shard}; kill -9 $$"])
def test_pipes_that_fail_leave_nothing(command: str, folder: Path, own_cache: Path) -> None:
    with pytest.raises(DataError, match="pipe:"):
        find_shards("pipe:" + command.format(shard=folder / "000.tar"), allow_pipe=True)
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []


# What a data set refuses.

PNG = image_bytes(numbered_pixels(1))
GOOD = {"a.png": PNG, "a.cls": b"0", "b.png": PNG, "b.cls": b"1"}
REFUSED = {
    "no image": ({"a.cls": b"1", "a.txt": b"x"}, {}, "no image part in the shards, only cls, txt: set data.image_key"),
    "image missing in one": (GOOD | {"c.cls": b"1"}, {}, r"1 sample\(s\) with no image part; parts: cls"),
    "label missing in one": (GOOD | {"c.png": PNG}, {"labels": True}, r"1 sample\(s\) with no cls part; parts: png"),
    "no labels": ({"a.png": PNG}, {"labels": True}, r"no class labels in .*model\.conditional=false"),
    "several images": ({"a.png": PNG, "a.jpg": PNG}, {}, r"several image parts \(jpg, png\): set data\.image"),
    "label outside": (GOOD, {"labels": True, "classes": 1}, r"label 1 is outside of data\.classes=1"),
    "label is a word": (GOOD | {"c.png": PNG, "c.cls": b"cat"}, {"labels": True}, r"1 cls part\(s\) hold no whole num"),
    "label below zero": (GOOD | {"c.png": PNG, "c.cls": b"-1"}, {"labels": True}, r"1 cls part\(s\) hold no whole num"),
    "chosen image missing": (GOOD, {"image": "jpg"}, r"2 sample\(s\) with no image part"),
    "empty": ({}, {}, "without a sample"),
    "nothing that is a sample": ({"README": b"x"}, {}, "without a sample"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_sets_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    members, options, message = REFUSED[name]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError, match=message) as caught:
        open_data(tmp_path, **options)
    assert "\n" not in str(caught.value)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickles_in_a_shard_are_never_opened(tmp_path: Path, start_stream: Callable[..., Stream]) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    names = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "json")
    members = [(f"{i}.{name}", trap) for i in range(8) for name in names]
    members += [(f"{i}.{part}", data) for i in range(8) for part, data in (("png", PNG), ("cls", b"1"))]
    members.sort(key=lambda member: member[0].partition(".")[0])
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    data = open_data(tmp_path, labels=True)
    next(start_stream(data, batch=8))
    pack(str(tmp_path), str(tmp_path / "packed"), PackOptions(), workers=1)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap is one


def test_which_image_part_can_be_chosen(tmp_path: Path) -> None:
    members = {}
    for i in range(3):
        members |= {
            f"{i}.small.png": image_bytes(numbered_pixels(i)),
            f"{i}.PNG": image_bytes(numbered_pixels(100 + i)),
        }
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    for image, first in (("", 100), ("png", 100), ("PNG", 100), ("small.png", 0)):
        data = open_data(tmp_path, image=image)
        numbers = [int(numbers_of(data.read(i, DecodeOptions(square(16), "area"))[None])[0]) for i in range(3)]
        assert numbers == [first, first + 1, first + 2]


def test_a_damaged_set_is_used_on_demand(tmp_path: Path) -> None:
    """The good samples in their order, counted without the others; what is wrong is told."""
    members = [(f"{i}.{part}", data) for i in range(5) for part, data in (("png", PNG), ("cls", b"%d" % i))]
    del members[2]  # the picture of 1
    del members[-1]  # the label of 4
    members.insert(0, ("x.cls", b"many"))  # no picture, and a label that is none
    data = tar_bytes(members)
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "b.tar").write_bytes(data[: data.index(b"3.png")])
    with pytest.raises(
        DataError, match=r"the data set is corrupt: .*b\.tar: no end-of-archive.*data\.allow_corrupt=true"
    ):
        open_data(tmp_path, labels=True)
    found = open_data(tmp_path, labels=True, allow_corrupt=True)
    assert [found.key(i)[1] for i in range(found.num_samples)] == ["0", "2", "3", "0"]
    assert found.class_counts == [2, 0, 1, 1]
    assert found.counts.tolist() == [3, 1]
    assert [problem.partition(".tar: ")[2].split(" (")[0] for problem in found.problems] == [
        "no end-of-archive marker",
        "2 sample(s) with no image part; parts: cls",
        "1 sample(s) with no cls part; parts: png",
        "2 sample(s) with no image part; parts: cls",
    ]
    assert open_data(tmp_path, allow_corrupt=True).counts.tolist() == [4, 1]


def test_classes_may_be_more_than_there_are(folder: Path) -> None:
    assert open_data(folder, labels=True).class_counts == [8, 8, 7, 7, 7, 7, 7]
    assert open_data(folder, labels=True, classes=9).class_counts == [8, 8, 7, 7, 7, 7, 7, 0, 0]
    assert open_data(folder).class_counts == []


def test_a_shard_that_changes_while_a_run_reads_it_is_noticed(folder: Path) -> None:
    data = open_data(folder)
    time.sleep(0.02)
    (folder / "000.tar").write_bytes(numbered_shard(range(12)))
    with pytest.raises(DataError, match=r"000\.tar.*indexed|000\.tar is not the shard that this run started with"):
        data.located(0)


# Ranks that open a set together.


def open_together(urls: list[str], world: int, own: dict[int, list[str]] | None = None) -> list[Dataset | DataError]:
    """What each rank gets when they tell one another what they found; some may see `own` shards."""
    told: list[list] = [[] for _ in range(world)]
    barrier = threading.Barrier(world, timeout=20)

    def open_one(rank: int) -> Dataset | DataError:
        def gather(mine: list) -> list[list]:
            told[rank] = mine
            barrier.wait()
            return list(told)

        try:
            seen = (own or {}).get(rank, urls)
            return Dataset(seen, ByteRangeReader(), DatasetOptions(labels=True), RankInfo(rank, world, gather))
        except DataError as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(open_one, range(world)))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_the_opening(world: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls, scanned, build = find_shards(str(folder)), [], shard_index.build
    monkeypatch.setattr(shard_index, "build", lambda url, source: scanned.append(url) or build(url, source))
    found = open_together(urls, world)
    assert sorted(scanned) == urls
    alone = Dataset(urls, ByteRangeReader(), DatasetOptions(labels=True))
    for data in found:
        assert data.fingerprint == alone.fingerprint
        assert data.counts.tolist() == COUNTS
        assert data.class_counts == alone.class_counts
        assert data.mean_bytes == alone.mean_bytes
        assert [data.key(i) for i in (0, 20, 50)] == [alone.key(i) for i in (0, 20, 50)]


@pytest.mark.parametrize(
    ("rank", "change", "told"),
    [
        (1, lambda urls: urls[:-1], "rank 1 finds other shards than rank 0: it lacks 004.tar"),
        (0, lambda urls: urls[:-1], "rank 1 finds other shards than rank 0: it alone has 004.tar"),
        (2, lambda urls: urls[::-1], "rank 2 finds other shards than rank 0: 5 and 5, or another order"),
    ],
)
def test_ranks_that_find_other_shards_are_told(
    rank: int, change: Callable[[list[str]], list[str]], told: str, folder: Path
) -> None:
    urls = find_shards(str(folder))
    found = open_together(urls, 3, {rank: change(urls)})
    assert len({str(error) for error in found}) == 1
    assert told in str(found[0])


def test_another_shard_of_the_same_name_is_noticed_when_it_is_opened(folder: Path, tmp_path: Path) -> None:
    """A node's own copy, with other samples: the index that its rank reads is not the one that was agreed on."""
    write_shards(tmp_path / "other", COUNTS, numbers_from=100)
    theirs = find_shards(str(tmp_path / "other"))
    _, other = open_together(find_shards(str(folder)), 2, {1: theirs})
    assert other.counts.tolist() == COUNTS
    with pytest.raises(DataError, match=r"000\.tar is not the shard that this run started with"):
        other.located(0)


def test_one_ranks_error_is_everyones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls, summary = find_shards(str(folder)), index_cache.summary

    def failing(url: str, *arguments: object) -> object:
        if url.endswith("002.tar"):
            raise OSError("unforeseen")
        return summary(url, *arguments)

    (folder / "003.tar").unlink()
    for message in ("No such file", "unforeseen"):
        found = open_together(urls, 3)
        assert len({str(error) for error in found}) == 1
        assert isinstance(found[0], DataError)
        assert message in str(found[0])
        monkeypatch.setattr(index_cache, "summary", failing)


# The fingerprint.


def test_fingerprint_is_of_content_and_order_not_of_place(
    folder: Path, tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = find_shards(str(folder))
    first = Dataset(urls, ByteRangeReader()).fingerprint
    assert Dataset(urls, ByteRangeReader(), DatasetOptions(labels=True)).fingerprint == first
    write_shards(tmp_path / "copy", COUNTS)
    assert open_data(tmp_path / "copy").fingerprint == first
    monkeypatch.chdir(folder)
    assert (
        Dataset([f"file://{urls[0]}", *(os.path.basename(url) for url in urls[1:])], ByteRangeReader()).fingerprint
        == first
    )
    assert served(server).fingerprint == first
    signed = Dataset(find_shards(server.address + "/{000..004}.tar?key=OTHER"), ByteRangeReader())
    assert signed.fingerprint == first

    others = [Dataset(urls[::-1], ByteRangeReader()).fingerprint, Dataset(urls[:-1], ByteRangeReader()).fingerprint]
    for i, numbers in enumerate([[60, *range(1, 13)], range(14), range(12, -1, -1)]):
        other = tmp_path / f"other{i}"
        write_shards(other, COUNTS)
        (other / "000.tar").write_bytes(numbered_shard(numbers))
        others.append(open_data(other).fingerprint)
    assert len({first, *others}) == 6


def test_small_images_are_decoded_by_one_thread_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(loader.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    small, large = loader.SMALL_SAMPLE / 2, loader.SMALL_SAMPLE * 2
    for device, mean_bytes, threads in (("cpu", small, 1), ("cpu", large, 2), ("cuda", small, 8), ("cuda", large, 8)):
        assert loader.decoding_threads(1, device, mean_bytes) == threads
    assert loader.decoding_threads(8, "cuda", large) == 2
