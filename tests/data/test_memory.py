"""What reading costs in memory: little for the largest sets, and no more after thousands of batches."""

import gc
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from processes import HELPERS, environment
from runs import make_digits, write_config
from shards import write_shards
from streams import make_stream

import distgan
from distgan.data.dataset import Dataset
from distgan.data.loader import Stream
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.storage.byte_ranges import ByteRangeReader


def read_large_set(folder: Path, shards: int, samples: int, batches: int, start: int = 0) -> dict[str, float]:
    """See large_set.py; in a process of its own."""
    command = [
        sys.executable,
        str(HELPERS / "large_set.py"),
        str(folder),
        *map(str, (shards, samples)),
    ]
    subprocess.run(command, env=environment(), check=True, capture_output=True)  # makes the set
    command += [str(batches), str(start)]
    done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_shards_with_many_classes_take_little_memory(tmp_path: Path) -> None:
    """A million samples of a thousand classes in 1,000 shards."""
    found = read_large_set(tmp_path / "set", 1000, 1000, 8)
    assert found["samples"] == 10**6
    assert found["peak_mb"] < 60
    assert found["open_sec"] < 60  # a second or so on a machine that is not busy


@pytest.mark.slow
def test_a_hundred_million_samples_take_less_than_500_mb(tmp_path: Path) -> None:
    first = read_large_set(tmp_path / "set", 10_000, 10_000, 100)
    resumed = read_large_set(tmp_path / "set", 10_000, 10_000, 100, start=10**10 + 12_345)
    assert first["samples"] == 10**8
    assert max(first["peak_mb"], resumed["peak_mb"]) < 500
    assert resumed["first_batch_sec"] < first["first_batch_sec"] + 1


def _read(stream: Stream, batches: int) -> None:
    for _ in range(batches):
        next(stream)
        stream.pop_warnings()
        stream.pop_corrupt()


def _held() -> int:
    """Bytes that this package and numpy hold; other threads of the process may have taken some meanwhile."""
    gc.collect()
    own = [tracemalloc.Filter(True, f"{folder}/*") for folder in (*distgan.__path__, *np.__path__)]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(own).traces)


@pytest.mark.parametrize("batches", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_stream_keeps_nothing_of_past_batches(batches: int, tmp_path: Path) -> None:
    """What Python and numpy hold after so many batches, over many epochs, against after the first few."""
    write_shards(tmp_path / "shards", [13, 7, 30], damaged={4, 21})
    data = Dataset(find_shards(str(tmp_path / "shards")), ByteRangeReader())
    plan = ShuffleOrder(data.counts, ShuffleLayout(lanes=8, block=4, window=3), 0)
    stream = make_stream(data, plan, batch=8, resolution=16, max_corrupt_fraction=0.1)
    tracemalloc.start()
    try:
        _read(stream, 50)
        before = _held()
        _read(stream, batches)
        assert _held() - before < 50_000
    finally:
        tracemalloc.stop()
        stream.close()


@pytest.mark.parametrize(
    "iterations", [pytest.param(400, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1800)
def test_a_run_keeps_nothing_of_past_steps(iterations: int, tmp_path: Path) -> None:
    """The peak of the process's memory after all steps, against after a quarter of them; many lines of metrics too."""
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits", 8), 8)
    command = [sys.executable, "-m", "distgan", "train", str(config), f"run.dir={tmp_path / 'run'}"]
    more = [f"train.images={12 * iterations}", "train.tick=240", "checkpoint.every=12k", "wandb.mode=disabled"]
    subprocess.run([*command, *more], env=environment(), check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    peaks = [row["Resources/cpu_mem_gb"] for row in rows]
    assert len(peaks) >= iterations / 20
    assert peaks[-1] - peaks[len(peaks) // 4] < 0.03
