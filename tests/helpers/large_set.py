"""A data set of any number of samples on a few megabytes of disk, and what it costs to read it.

Usage: large_set.py FOLDER SHARDS SAMPLES_PER_SHARD [BATCHES [START]]

Prints megabytes of memory and seconds of processor time as JSON. All shards are links to one small tar, and all indexes
to one index, whose samples share the tar's few pictures: in memory it is as large as any set of so many samples.
"""

import io
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from streams import make_stream

from distgan.data import shard_index, tar
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.storage.byte_ranges import ByteRangeReader

CLASSES, SIDE, BATCH = 1000, 32, 256


def make(folder: Path, shards: int, samples: int) -> None:
    folder.mkdir(parents=True)
    content = b""
    for i in range(4):
        picture = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)).save(
            picture, "JPEG"
        )
        for suffix, part in (("cls", b"%d" % i), ("jpg", picture.getvalue())):
            content += tar.header(f"{i}.{suffix}", len(part)) + part + b"\0" * (-len(part) % tar.BLOCK)
    content += tar.END
    (folder / "one").write_bytes(content)
    found = shard_index.scan(content, len(content))
    chosen = np.r_[0, np.arange(samples - 2) % 2 + 1, 3]  # the first and the last sample are looked at
    parts = (2 * chosen[:, None] + [0, 1]).ravel()
    found.first, found.kind, found.label = found.first[chosen], found.kind[chosen], np.arange(samples) % CLASSES
    found.offset, found.length = found.offset[parts], found.length[parts]
    for i in range(shards):
        os.link(folder / "one", folder / f"{i:06d}.tar")
    (folder / "index").write_bytes(found.to_bytes())
    for i in range(shards):
        os.link(folder / "index", folder / f"{i:06d}.tar.index")


def memory_mb(name: str) -> float:
    """VmRSS now, or VmHWM at its highest; getrusage would tell what the parent process had."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def main(folder: str, batches: int, start: int) -> dict[str, float]:
    before, began = memory_mb("VmRSS"), time.process_time()
    data = Dataset(find_shards(folder), ByteRangeReader(), DatasetOptions(labels=True))
    opened = time.process_time()
    layout = ShuffleLayout.choose(data.num_samples, data.mean_bytes, BATCH)
    stream = make_stream(
        data, ShuffleOrder(data.counts, layout, 0), batch=BATCH, resolution=SIDE, start=start, threads=1
    )
    next(stream)
    first = time.process_time()
    for _ in range(batches - 1):
        next(stream)
    stream.close()
    peak = memory_mb("VmHWM")
    return {
        "samples": data.num_samples,
        "base_mb": before,
        "peak_mb": peak - before,
        "end_mb": memory_mb("VmRSS") - before,
        "open_sec": opened - began,
        "first_batch_sec": first - opened,
    }


if __name__ == "__main__":
    where, shards, samples, *rest = sys.argv[1:]
    if not Path(where).exists():
        make(Path(where), int(shards), int(samples))
    batches, start = int(rest[0]) if rest else 20, int(rest[1]) if len(rest) > 1 else 0
    print(json.dumps(main(where, batches, start)))
