"""Batches of decoded images in the shuffled order, read and decoded ahead by threads.

The stream is a function of one number, the position where it starts: batch after batch it walks through the plan's
endless order, and each rank takes its slice of every global batch. Threads suffice, since reading and decoding let go
of Python's lock; they write straight into reused buffers, so no pixel is copied between processes.
"""

import contextlib
import itertools
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions, decode_into
from distgan.data.image_format import CorruptImage
from distgan.data.open_shards import ALONE, RankInfo
from distgan.data.shuffle import ShuffleOrder
from distgan.errors import DataError
from distgan.rng import host_rng
from distgan.storage.urls import is_local

SMALL_SAMPLE = 3584  # bytes in a shard, headers and label included


@dataclass
class Batch:
    """One rank's slice of a global batch. The arrays are reused: they hold until the next batch is asked for.

    Attributes:
        images: [B, H, W, C], of the type that decoding was asked for.
        labels: Class numbers, int64 [B]; -1 where there is none.
        positions: Global positions, int64 [B].
        samples: The samples that stand there, int64 [B].
        drawn: What the stream's `draw` made of the positions.
        num_replaced: How many of them stand in for corrupt ones.
        degraded: The same of degraded forms, where samples are pairs.
        conditions: The conditions as networks see them, float32 [B, V], where a run has some.
    """

    images: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    samples: np.ndarray
    drawn: tuple[np.ndarray, ...] = ()
    num_replaced: int = 0
    degraded: np.ndarray | None = None
    conditions: np.ndarray | None = None
    _crops: list[float] = field(default_factory=list)  # where each random crop is
    _tasks: list["Future[int]"] = field(default_factory=list)  # each decodes a part, and returns how many it replaced

    @property
    def given(self) -> np.ndarray:
        """Return what networks are given as labels: conditions [B, V], or class numbers [B]."""
        return self.labels if self.conditions is None else self.conditions

    @property
    def buffers(self) -> list[np.ndarray]:
        """Return the images and, of pairs, the degraded ones."""
        return [self.images] if self.degraded is None else [self.images, self.degraded]


def _buffer(options: "StreamOptions", shape: tuple[int, ...]) -> np.ndarray:
    """Make a buffer of the images' own type."""
    dtype = np.dtype(options.decode.image.dtype)
    levels = options.allocate((*shape[:-1], shape[-1] * dtype.itemsize))
    return levels if dtype == np.uint8 else levels.view(dtype)


def _pageable(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


@dataclass(frozen=True)
class StreamOptions:
    """Options of a stream of batches.

    Attributes:
        batch: Images of a global batch; every rank gets batch / world size of them.
        threads: How many decode at a time.
        prefetch: Batches that are made ahead.
        max_corrupt_fraction: Share of the data set that may turn out corrupt before the stream gives up.
        allocate: Makes the buffers, uint8 of a shape; a trainer on a GPU passes one that returns pinned memory.
    """

    batch: int
    decode: DecodeOptions
    threads: int = 2
    prefetch: int = 3
    max_corrupt_fraction: float = 0.01
    allocate: Callable[[tuple[int, ...]], np.ndarray] = _pageable


class Stream(Iterator[Batch]):
    """Endless batches of a data set in the shuffled order, until it is closed, as by `with`.

    Attributes:
        bad: What is wrong with samples that were found corrupt.
        num_resized: Images that had to be resized.
        closing: What is closed with it.

    Args:
        start: The position of the first batch. A resumed stream starts where the run stopped, at once.
        ranks: Each rank takes its slice of every global batch.
        draw: Noise for the positions of a batch, made ahead like the images.

    Raises (from `next`):
        DataError: bytes that cannot be read, or too many corrupt samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: ShuffleOrder,
        options: StreamOptions,
        *,
        start: int = 0,
        ranks: RankInfo = ALONE,
        draw: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda positions: (),
    ) -> None:
        self.dataset, self.plan = dataset, plan
        self.num_resized = 0
        self.bad: dict[int, str] = {}
        self.closing = contextlib.ExitStack()
        self._draw, self._decode = draw, options.decode
        self._crop_key, self._dropout_key = (host_rng.key(plan.seed, purpose) for purpose in ("crop", "conditions"))
        transforms = enumerate(options.decode.transforms)
        self._transform_keys = [host_rng.key(plan.seed, "transform", i, step.name) for i, step in transforms]
        self._num_reported, self._has_warned = 0, False
        self._max_bad = math.ceil(options.max_corrupt_fraction * dataset.num_samples)
        self._batch, self._local = options.batch, options.batch // ranks.size
        self._start = start + ranks.rank * self._local
        self._window_of_lane = np.full(plan.layout.lanes, -1, np.int64)  # the last one that was read ahead
        # With single samples as blocks there is nothing sequential to read, and so small a set is soon in memory.
        self._reads_ahead = plan.layout.block > 1 or not all(map(is_local, dataset.urls))
        self._lock = threading.Lock()
        self._stopping = False
        self._error: BaseException | None = None
        self._free: queue.SimpleQueue[list[np.ndarray] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._taken: list[np.ndarray] | None = None  # buffers of the batch that the caller has now
        shape = (self._local, *options.decode.image.shape)
        for _ in range(options.prefetch + 1):
            self._free.put([_buffer(options, shape) for _ in range(2 if dataset.pairs else 1)])
        bounds = np.linspace(0, self._local, min(options.threads, self._local) + 1).astype(int)
        self._slices = [range(a, b) for a, b in itertools.pairwise(bounds.tolist())]
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="distgan-decode")
        self._scheduler = threading.Thread(target=self._schedule, name="distgan-feed", daemon=True)
        self._scheduler.start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        if self._stopping:
            raise ValueError("the stream is closed")
        if self._error is not None:  # the batch that it concerns is not skipped
            raise self._error
        if self._taken is not None:
            self._free.put(self._taken)
            self._taken = None
        try:
            batch = self._ready.get()
            if isinstance(batch, BaseException):
                raise batch
            batch.num_replaced = sum(task.result() for task in batch._tasks)
        except BaseException as error:
            self._error = error
            raise
        self._taken = batch.buffers
        return batch

    def pop_corrupt(self) -> list[dict[str, str]]:
        """Return shard, key and reason of the samples that were found corrupt since the last call."""
        rows = []
        for sample in list(self.bad)[self._num_reported :]:
            shard, key = self.dataset.key(sample)
            rows.append({"shard": shard, "key": key, "reason": self.bad[sample]})
        self._num_reported += len(rows)
        return rows

    def pop_warnings(self) -> list[str]:
        """Return warnings about the data that are new since the last call."""
        disk = self.dataset.source.disk
        warnings = disk.pop_warnings() if disk is not None else []
        if self.num_resized and not self._has_warned and self._decode.crop != "random":  # which is drawn each time
            self._has_warned = True
            warnings.append("images are resized while training; `distgan pack --resolution` would do it once for all")
        return warnings

    def close(self) -> None:
        """Stop reading ahead."""
        self._stopping = True
        self._free.put(None)
        self._scheduler.join(timeout=10)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.closing.close()

    def _schedule(self) -> None:
        """Start the work on one batch after another, as buffers become free."""
        try:
            for step in itertools.count():
                buffers = self._free.get()
                if self._stopping or buffers is None:
                    return
                positions = self._start + step * self._batch + np.arange(self._local)
                self._read_ahead(positions)
                samples = self.plan.ids(positions)
                images, degraded = buffers if self.dataset.pairs else (buffers[0], None)
                batch = Batch(images, np.empty(self._local, np.int64), positions, samples, degraded=degraded)
                if self.dataset.conditions is not None:
                    batch.conditions = np.empty((self._local, self.dataset.conditions.length), np.float32)
                if self._decode.crop == "random":
                    batch._crops = host_rng.uniform(self._crop_key, positions).tolist()
                shards, places = (x.tolist() for x in self.dataset.shard_of(samples))
                for part in self._slices:
                    batch._tasks.append(self._pool.submit(self._fill, batch, part, shards, places))
                batch.drawn = self._draw(positions)
                self._ready.put(batch)
        except BaseException as error:  # raised by the next call of `next`
            self._ready.put(error)

    def _read_ahead(self, positions: np.ndarray) -> None:
        """Ask for the bytes of each window that a lane will enter half a window from now, or is in already."""
        if not self._reads_ahead:
            return
        ahead = positions + self.plan.layout.lanes * (self.plan.layout.window // 2)
        for places in (positions, ahead):
            windows = self.plan.windows(places)
            lanes = windows % self.plan.layout.lanes
            for window in np.unique(windows[windows > self._window_of_lane[lanes]]).tolist():
                self._window_of_lane[window % self.plan.layout.lanes] = window
                self._prefetch(self.plan.window_ids(window))

    def _prefetch(self, samples: np.ndarray) -> None:
        shards, places = self.dataset.shard_of(samples)
        cuts = np.flatnonzero((np.diff(shards) != 0) | (np.diff(places) != 1)) + 1
        for shard, run in zip(shards[np.r_[0, cuts]], np.split(places, cuts)):
            located = self.dataset.located(int(shard))
            start = min(int(offset[run[0]]) for offset, _ in located.all_parts)
            stop = max(int(offset[run[-1]]) + int(length[run[-1]]) for offset, length in located.all_parts)
            self.dataset.source.prefetch(self.dataset.urls[shard], start, stop - start)

    def _fill(self, batch: Batch, part: range, shards: list[int], places: list[int]) -> int:
        """Decode the samples of some slots of a batch; returns how many were replaced."""
        num_replaced = 0
        for i in part:
            label = self._decode_sample(batch, i, int(batch.samples[i]), shards[i], places[i])
            if label is None:
                num_replaced += 1
                label = self._replace(batch, i)
            batch.labels[i] = label
        return num_replaced

    def _decode_sample(self, batch: Batch, i: int, sample: int, shard: int, place: int) -> int | None:
        """Decode a sample into slot i of a batch; returns its label, or None for a corrupt one."""
        if sample in self.bad:
            return None
        located = self.dataset.located(shard)
        crop = batch._crops[i] if batch._crops else None
        draws = self._transform_draws(int(batch.positions[i])) if self._transform_keys else None
        try:
            for parts, images in zip(located.images, batch.buffers):  # a pair is changed alike
                data = self.dataset.fetch(shard, parts, place)
                if decode_into(data, images[i], self._decode, crop, draws):
                    self.num_resized += 1
            if batch.conditions is not None:
                values = self.dataset.condition_at(shard, located, place)
                batch.conditions[i] = self._encoded(values, int(batch.positions[i]))
        except CorruptImage as reason:
            self._record_corrupt(sample, str(reason))
            return None
        return int(located.label[place])

    def _transform_draws(self, position: int) -> list[np.ndarray]:
        """Return the numbers of each transform for an image, a function of its position alone."""
        nums = [step.num_draws for step in self._decode.transforms]
        return [host_rng.uniform(key, position * num + np.arange(num)) for key, num in zip(self._transform_keys, nums)]

    def _encoded(self, values: np.ndarray, position: int) -> np.ndarray:
        """Return conditions as networks see them; each is dropped by chance, a function of the position alone."""
        conditions, values = self.dataset.conditions, values[None]
        assert conditions is not None
        if self.dataset.dropout:
            num = len(conditions.fields)
            draws = host_rng.uniform(self._dropout_key, position * num + np.arange(num))
            values = conditions.without(values, draws[None] < self.dataset.dropout)
        encoded: np.ndarray = conditions.encode(values)[0]
        return encoded

    def _replace(self, batch: Batch, i: int) -> int:
        """Fill a corrupt sample's slot with another one, by a rule that knows neither ranks nor threads."""
        position = int(batch.positions[i])
        beyond = range(position + 1, position + self.dataset.num_samples)  # where the whole window is corrupt
        for candidate in itertools.chain(self.plan.replacements(position), beyond):
            sample = self.plan.ids(np.array([candidate]))
            shard, place = (int(x[0]) for x in self.dataset.shard_of(sample))
            label = self._decode_sample(batch, i, int(sample[0]), shard, place)
            if label is not None:
                batch.samples[i] = sample[0]
                return label
        reasons = ", ".join(dict.fromkeys(list(self.bad.values())[:3]))
        raise DataError(f"no good sample among the {self.dataset.num_samples} of the data set: {reasons}")

    def _record_corrupt(self, sample: int, reason: str) -> None:
        """Record that a sample is corrupt. Raises DataError where too many are."""
        with self._lock:
            self.bad[sample] = reason
            if len(self.bad) <= self._max_bad:
                return
        url, key = self.dataset.key(sample)
        raise DataError(
            f"{len(self.bad)} of {self.dataset.num_samples} samples are corrupt, more than data.max_corrupt_fraction "
            f"allows; the last one is {key!r} in {url}: {reason}"
        )


def decoding_threads(ranks_here: int, device: str, mean_bytes: float = math.inf) -> int:
    """Return how many threads a rank decodes with: its part of the cores, few where training needs the cores.

    Args:
        mean_bytes: Size of a sample in its shard. A CPU decodes small ones with one thread: two would spend more time
            on handing Python's lock to each other than they gain.
    """
    if device == "cpu" and mean_bytes < SMALL_SAMPLE:
        return 1
    share = (os.cpu_count() or 1) // ranks_here
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else share  # fewer, where srun binds tasks
    return max(1, min(share, own, 8 if device == "cuda" else 2))
