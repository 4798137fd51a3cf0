"""The order of a run for PyTorch's DataLoader and for webdataset: batches of images, and samples as they are stored."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from distgan.data import index_cache
from distgan.data.dataset import Dataset
from distgan.data.shard_index import ShardIndex
from distgan.data.stream_source import OrderSource, StreamSource
from distgan.storage.home import default_cache_dir

OPEN_INDEXES = 64  # of shards, that are kept


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamDataset(StreamSource, IterableDataset):
    """Endless batches of images and labels, in the order of `open_stream`, as a dataset of PyTorch.

        dataset = StreamDataset("data/faces", 64, resolution=128)
        for images, labels in DataLoader(dataset, batch_size=None, num_workers=4):
            ...              # uint8 [64, 3, 128, 128], int64 [64]; -1 where a sample has no label

    Any number of workers gives the same batches in the same order. Arguments are those of `open_stream`.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with self.open(*_worker()) as stream:
            for batch in stream:
                images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)  # in a buffer that is used again
                yield images.clone(memory_format=torch.contiguous_format), torch.from_numpy(batch.labels)


@dataclass(frozen=True, eq=False)
class SampleDataset(OrderSource, IterableDataset):
    """Endless samples in the order of a run, as webdataset has them: every part as it is stored.

        pipeline = webdataset.DataPipeline(
            SampleDataset("data/faces", 64), webdataset.decode("rgb8"), webdataset.to_tuple("png", "json")
        )

    A sample is {"__key__": ..., "__url__": ..., SUFFIX: bytes, ...}, so webdataset's decoders read any of its parts.
    Any number of a DataLoader's workers gives the same samples in the same order.
    """

    def __iter__(self) -> Iterator[dict[str, str | bytes]]:
        worker, num_workers = _worker()
        dataset = self.open_dataset()
        order, local = self.order(dataset), self.batch // self.world
        cache = default_cache_dir() / "index"
        index = functools.lru_cache(OPEN_INDEXES)(
            lambda shard: _with_parts(index_cache.load(dataset.urls[shard], dataset.source, cache))
        )
        try:
            for number in itertools.count(worker, num_workers):
                step, place = divmod(number, local)
                position = self.start + step * self.batch + self.rank * local + place
                (sample,) = order.ids(np.array([position]))
                shard, at = (int(x[0]) for x in dataset.shard_of(np.array([sample])))
                yield _raw_sample(dataset, int(sample), shard, at, *index(shard))
        finally:
            dataset.source.close()


def _raw_sample(
    dataset: Dataset, sample: int, shard: int, place: int, index: ShardIndex, first_part: np.ndarray
) -> dict[str, str | bytes]:
    """Return a sample as webdataset has it.

    Args:
        shard, place: Where it is, see `Dataset.shard_of`.
        index, first_part: Of that shard, see `_with_parts`.
    """
    url, key = dataset.key(sample)
    row = int(np.searchsorted(index.first, dataset.located(shard).first[place]))
    parts: dict[str, str | bytes] = {"__key__": key, "__url__": url}
    for part, suffix in enumerate(index.kinds[index.kind[row]], int(first_part[row])):
        offset, length = int(index.offset[part]), int(index.length[part])
        parts[suffix] = dataset.source.cached(dataset.urls[shard], offset, length)
    return parts


def _with_parts(index: ShardIndex) -> tuple[ShardIndex, np.ndarray]:
    """Return an index, and the number of the first part of each of its samples."""
    num_parts = np.array([len(kind) for kind in index.kinds], np.int64)[index.kind]
    return index, np.cumsum(num_parts) - num_parts


def _worker() -> tuple[int, int]:
    """Return the number of this worker of a DataLoader, and how many there are."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)
