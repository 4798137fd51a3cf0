"""What reading costs in memory: little for the largest sets, and no more after thousands of batches."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from conftest import write_shards
from processes import ROOT, environment

from distgan.data.dataset import Dataset, find_shards
from distgan.data.plan import Layout, Plan
from distgan.data.source import Source
from distgan.data.stream import Stream


def read_large_set(folder: Path, shards: int, samples: int, batches: int, start: int = 0) -> dict[str, float]:
    """See large_set.py; in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "large_set.py"), str(folder), *map(str, (shards, samples))]
    subprocess.run(command, env=environment(), check=True, capture_output=True)  # makes the set
    command += [str(batches), str(start)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_shards_with_many_classes_take_little_memory(tmp_path: Path) -> None:
    """A million samples of a thousand classes in 1,000 shards."""
    found = read_large_set(tmp_path / "set", 1000, 1000, 8)
    assert found["samples"] == 10**6
    assert found["peak_mb"] < 60
    assert found["open_sec"] < 8  # a second or so on a machine that is not busy


@pytest.mark.slow
def test_a_hundred_million_samples_take_less_than_500_mb(tmp_path: Path) -> None:
    first = read_large_set(tmp_path / "set", 10_000, 10_000, 100)
    resumed = read_large_set(tmp_path / "set", 10_000, 10_000, 100, start=10**10 + 12_345)
    assert first["samples"] == 10**8
    assert max(first["peak_mb"], resumed["peak_mb"]) < 500
    assert resumed["first_batch_sec"] < first["first_batch_sec"] + 1


@pytest.mark.parametrize("batches", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_stream_keeps_nothing_of_past_batches(batches: int, tmp_path: Path) -> None:
    """What Python and numpy hold after so many batches, over many epochs, against after the first few."""
    write_shards(tmp_path / "shards", [13, 7, 30], damaged={4, 21})
    data = Dataset(find_shards(str(tmp_path / "shards")), Source())
    plan = Plan(data.counts, Layout(lanes=8, block=4, window=3), 0)
    stream = Stream(data, plan, batch=8, resolution=16, max_bad_share=0.1)
    tracemalloc.start()
    try:
        for _ in range(50):
            next(stream)
            stream.news()
            stream.newly_damaged()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(batches):
            next(stream)
            stream.news()
            stream.newly_damaged()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()
        stream.close()
