"""What a program's own stream is made of: shards, order and rank, and how images are decoded."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.host_transforms import HostTransform, TransformStep
from distgan.data.loader import Stream, StreamOptions
from distgan.data.open_shards import RankInfo
from distgan.data.resize import CROPS
from distgan.data.sample_parts import DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.errors import ConfigError
from distgan.image_spec import DType, ImageSpec
from distgan.storage.byte_ranges import ByteRangeReader

Transform = HostTransform | Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class OrderSource:
    """Samples in the order of a run.

    Attributes:
        shards: A folder, a glob, an address, or a list, as `data.shards`.
        batch: Samples of a global batch, a multiple of `world`; the order depends on it.
        labels: Whether every sample must have a class.
        seed: Of the order.
        start: The position of the first sample.
        rank, world: Which share of each global batch is taken.
    """

    shards: str | Sequence[str]
    batch: int
    labels: bool = False
    seed: int = 0
    start: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that no stream has."""
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank={self.rank}, world={self.world}: ranks are 0 to world - 1")
        if self.batch < 1 or self.batch % self.world:
            raise ConfigError(f"batch={self.batch}: a multiple of world={self.world}, and at least that")
        if self.start < 0:
            raise ConfigError(f"start={self.start}: at least 0")

    def open_dataset(self) -> Dataset:
        """Open the shards. Raises DataError."""
        return Dataset(find_shards(self.shards), ByteRangeReader(), DatasetOptions(labels=self.labels))

    def order(self, dataset: Dataset) -> ShuffleOrder:
        """Return the order of the samples of a data set."""
        layout = ShuffleLayout.choose(dataset.num_samples, dataset.mean_bytes, self.batch)
        return ShuffleOrder(dataset.counts, layout, self.seed)


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamSource(OrderSource):
    """Batches of decoded images in the order of a run; see `distgan.open_stream` for the settings."""

    resolution: int | tuple[int, int]
    channels: int = 3
    dtype: DType = "uint8"
    crop: str = "center"
    threads: int = 2
    transform: Transform | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that no stream has."""
        super().__post_init__()
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}: at least 1")
        if self.crop not in CROPS:
            raise ConfigError(f"crop={self.crop!r}: choose one of {', '.join(CROPS)}")
        self.image  # noqa: B018 (which it raises for)

    @property
    def image(self) -> ImageSpec:
        """Return the channels, size and values of the images. Raises ConfigError where there are none such."""
        height, width = (self.resolution,) * 2 if isinstance(self.resolution, int) else self.resolution
        try:
            return ImageSpec(height, width, self.channels, self.dtype, 0, 1 if self.dtype == "float32" else 0)
        except ValueError as error:
            raise ConfigError(
                f"resolution={self.resolution}, channels={self.channels}, dtype={self.dtype}: {error}"
            ) from None

    def open(self, worker: int = 0, num_workers: int = 1) -> Stream:
        """Open the batches; of several workers, each takes every `num_workers`-th batch.

        A worker is a rank of a `num_workers` times larger batch: its share of that is one of the batches here.
        """
        with contextlib.ExitStack() as opened:
            dataset = self.open_dataset()
            opened.callback(dataset.source.close)
            decode = DecodeOptions(self.image, crop=self.crop, transforms=self._transforms())
            options = StreamOptions(self.batch * num_workers, decode, threads=self.threads)
            ranks = RankInfo(worker * self.world + self.rank, num_workers * self.world)
            stream = Stream(dataset, self.order(dataset), options, start=self.start, ranks=ranks)
            stream.closing = opened.pop_all()
        return stream

    def _transforms(self) -> tuple[TransformStep, ...]:
        given = self.transform
        if given is None:
            return ()
        transform = given if isinstance(given, HostTransform) else HostTransform(lambda pixels, draws, _: given(pixels))
        return (TransformStep("transform", transform, transform.options() if transform.options else None),)
