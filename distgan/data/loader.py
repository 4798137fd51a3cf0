"""Plan and shards -> batches of decoded images, read and decoded ahead by threads.

The stream is a function of one number, the position where it starts: batch after batch it walks through the plan's
endless order, and each rank takes its slice of every global batch. Threads suffice, since reading and decoding let go
of Python's lock; they write straight into reused buffers, so no pixel is copied between processes.
"""

import contextlib
import functools
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
from distgan.data.decode import decode_into
from distgan.data.image_format import MAX_PIXELS, CorruptImage, check_bytes
from distgan.data.shuffle import Plan
from distgan.errors import DataError
from distgan.storage.urls import is_local


@dataclass
class Batch:
    """One rank's slice of a global batch. The arrays are reused: they hold until the next batch is asked for.

    Attributes:
        images: RGB, uint8 [B, R, R, 3].
        labels: Class numbers, int64 [B]; -1 where there is none.
        positions: Global positions, int64 [B].
        samples: The samples that stand there, int64 [B].
        drawn: What the stream's `draw` made of the positions.
        num_replaced: How many of them stand in for corrupt ones.
        degraded: RGB, uint8 [B, R, R, 3], where samples are pairs.
    """

    images: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    samples: np.ndarray
    drawn: tuple[np.ndarray, ...] = ()
    num_replaced: int = 0
    degraded: np.ndarray | None = None
    _fills: list[Future] = field(default_factory=list)


class Stream(Iterator[Batch]):
    """Endless batches of a data set in the plan's order, until it is closed, as by `with`.

    Attributes:
        closing: What is closed with it.

    Args:
        batch: Images of a global batch; every rank gets batch / world of them.
        resolution: Images of another size are cropped and resized to it.
        start: The position of the first batch. A resumed stream starts where the run stopped, at once.
        threads: How many decode at a time.
        prefetch: Batches that are made ahead.
        filter, crop, scaled: How images of other sizes become square; see `image.decode_into`.
        max_corrupt_fraction: Share of the data set that may turn out corrupt before the stream gives up.
        draw: Noise for the positions of a batch, made ahead like the images.
        allocate: Makes the buffers; a trainer on a GPU passes one that returns pinned memory.

    Raises (from `next`):
        DataError: bytes that cannot be read, or too many corrupt samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        *,
        batch: int,
        resolution: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        prefetch: int = 3,
        filter: str = "lanczos",
        crop: str = "center",
        scaled: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_corrupt_fraction: float = 0.01,
        draw: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda positions: (),
        allocate: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: np.empty(shape, np.uint8),
    ) -> None:
        self.dataset, self.plan = dataset, plan
        self.num_resized = 0
        self._num_told, self._told_resized = 0, False
        self.bad: dict[int, str] = {}  # sample -> what is wrong with it
        self._draw = draw
        self._decode = functools.partial(decode_into, max_pixels=max_pixels, filter=filter, crop=crop, scaled=scaled)
        self._max_bad = math.ceil(max_corrupt_fraction * dataset.num_samples)
        self._batch, self._local = batch, batch // world
        self._start = start + rank * self._local
        self._window_of_lane = np.full(plan.layout.lanes, -1, np.int64)  # the last one that was read ahead
        # With single samples as blocks there is nothing sequential to read, and so small a set is soon in memory.
        self._reads_ahead = plan.layout.block > 1 or not all(map(is_local, dataset.urls))
        self._lock = threading.Lock()
        self._stopping = False
        self.closing = contextlib.ExitStack()
        self._error: BaseException | None = None
        self._free: queue.SimpleQueue[list[np.ndarray] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._held: list[np.ndarray] | None = None
        for _ in range(prefetch + 1):
            shape = (self._local, resolution, resolution, 3)
            self._free.put([allocate(shape) for _ in range(2 if dataset.pairs else 1)])
        bounds = np.linspace(0, self._local, min(threads, self._local) + 1).astype(int)
        self._slices = [range(a, b) for a, b in itertools.pairwise(bounds.tolist())]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="distgan-decode")
        self._feeder = threading.Thread(target=self._feed, name="distgan-feed", daemon=True)
        self._feeder.start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        if self._stopping:
            raise ValueError("the stream is closed")
        if self._error is not None:  # the batch that it befell is not passed over
            raise self._error
        if self._held is not None:
            self._free.put(self._held)
            self._held = None
        try:
            batch = self._ready.get()
            if isinstance(batch, BaseException):
                raise batch
            batch.num_replaced = sum(fill.result() for fill in batch._fills)
        except BaseException as error:
            self._error = error
            raise
        self._held = [batch.images] if batch.degraded is None else [batch.images, batch.degraded]
        return batch

    def newly_damaged(self) -> list[dict[str, str]]:
        """Shard, key and reason of the samples that were found corrupt since the last call."""
        found = []
        for sample in list(self.bad)[self._num_told :]:
            shard, key = self.dataset.key(sample)
            found.append({"shard": shard, "key": key, "reason": self.bad[sample]})
        self._num_told += len(found)
        return found

    def news(self) -> list[str]:
        """What else was found out about the data since the last call, for a person."""
        told = self.dataset.source.disk.news() if self.dataset.source.disk is not None else []
        if self.num_resized and not self._told_resized:
            self._told_resized = True
            told.append("images are resized while training; `distgan pack --resolution` would do it once for all")
        return told

    def close(self) -> None:
        """Stop reading ahead."""
        self._stopping = True
        self._free.put(None)
        self._feeder.join(timeout=10)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.closing.close()

    def _feed(self) -> None:
        """Hand out work as buffers become free."""
        try:
            for step in itertools.count():
                buffers = self._free.get()
                if self._stopping or buffers is None:
                    return
                positions = self._start + step * self._batch + np.arange(self._local)
                self._read_ahead(positions)
                samples = self.plan.ids(positions)
                batch = Batch(buffers[0], np.empty(self._local, np.int64), positions, samples)
                batch.degraded = buffers[1] if self.dataset.pairs else None
                shards, places = (x.tolist() for x in self.dataset.shard_of(samples))
                for part in self._slices:
                    batch._fills.append(self._pool.submit(self._fill, batch, part, shards, places))
                batch.drawn = self._draw(positions)
                self._ready.put(batch)
        except BaseException as error:  # told to whoever asks for the next batch
            self._ready.put(error)

    def _read_ahead(self, positions: np.ndarray) -> None:
        """Ask for the bytes of each window that a lane will enter half a window from now, or is in already."""
        if not self._reads_ahead:
            return
        ahead = positions + self.plan.layout.lanes * (self.plan.layout.window // 2)
        for wanted in (positions, ahead):
            windows = self.plan.windows(wanted)
            lanes = windows % self.plan.layout.lanes
            for window in np.unique(windows[windows > self._window_of_lane[lanes]]).tolist():
                self._window_of_lane[window % self.plan.layout.lanes] = window
                self._prefetch(self.plan.window_ids(window))

    def _prefetch(self, samples: np.ndarray) -> None:
        shards, places = self.dataset.shard_of(samples)
        cuts = np.flatnonzero((np.diff(shards) != 0) | (np.diff(places) != 1)) + 1
        for shard, run in zip(shards[np.r_[0, cuts]], np.split(places, cuts)):
            located = self.dataset.located(int(shard))
            start = min(int(offset[run[0]]) for offset, _ in located.pictures)
            stop = max(int(offset[run[-1]]) + int(length[run[-1]]) for offset, length in located.pictures)
            self.dataset.source.prefetch(self.dataset.urls[shard], start, stop - start)

    def _fill(self, batch: Batch, part: range, shards: list[int], places: list[int]) -> int:
        """Decode a part of a batch; the number of substituted samples in it."""
        num_replaced = 0
        for i in part:
            sample = int(batch.samples[i])
            label = self._try(sample, shards[i], places[i], batch, i)
            if label is None:
                num_replaced += 1
                label = self._substitute(batch, i)
            batch.labels[i] = label
        return num_replaced

    def _try(self, sample: int, shard: int, place: int, batch: Batch, i: int) -> int | None:
        """Decode one sample into slot i of a batch; its label, or None for a corrupt one."""
        if sample in self.bad:
            return None
        located = self.dataset.located(shard)
        wanted = [batch.images] if batch.degraded is None else [batch.images, batch.degraded]
        try:
            for (offset, length), out in zip(located.pictures, wanted):
                check_bytes(int(length[place]))
                data = self.dataset.source.cached(self.dataset.urls[shard], int(offset[place]), int(length[place]))
                if self._decode(data, out[i]):
                    self.num_resized += 1
        except CorruptImage as reason:
            self._note(sample, str(reason))
            return None
        return int(located.label[place])

    def _substitute(self, batch: Batch, i: int) -> int:
        """Fill a corrupt sample's slot by the fixed rule, which knows neither ranks nor threads."""
        position = int(batch.positions[i])
        beyond = range(position + 1, position + self.dataset.num_samples)  # where the whole window is corrupt
        for candidate in itertools.chain(self.plan.substitutes(position), beyond):
            sample = self.plan.ids(np.array([candidate]))
            shard, place = (int(x[0]) for x in self.dataset.shard_of(sample))
            label = self._try(int(sample[0]), shard, place, batch, i)
            if label is not None:
                batch.samples[i] = sample[0]
                return label
        raise DataError(f"no good sample among the {self.dataset.num_samples} of the data set")

    def _note(self, sample: int, reason: str) -> None:
        with self._lock:
            self.bad[sample] = reason
            if len(self.bad) <= self._max_bad:
                return
        url, key = self.dataset.key(sample)
        raise DataError(
            f"{len(self.bad)} of {self.dataset.num_samples} samples are corrupt, more than data.max_corrupt_fraction "
            f"allows; the last one is {key!r} in {url}: {reason}"
        )


def decoding_threads(ranks_here: int, device: str) -> int:
    """Of each rank: the cores divided, but few next to a training that needs the cores itself."""
    share = (os.cpu_count() or 1) // ranks_here
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else share  # fewer, where srun binds tasks
    return max(1, min(share, own, 8 if device == "cuda" else 2))
