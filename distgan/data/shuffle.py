"""Map each global position p to a sample. Integers only: no files, no ranks, no state.

One endless order over epochs: position p belongs to epoch p // N, and every epoch holds every sample exactly once.
An epoch is laid out in three steps, so that the order is well shuffled and the reads stay nearly sequential:

    blocks   every shard is cut into runs of `block` samples; all blocks of the data set are permuted
    lanes    that sequence is cut into `lanes` equal parts; consecutive positions take turns among the lanes,
             so the samples of one batch come from as many places of the data set
    windows  inside a lane, each run of `window` rows is shuffled; the boundaries of different lanes are staggered,
             so that the lanes do not all need new bytes at the same moment

The N mod lanes samples that are left over close the epoch, shuffled among themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from distgan.rng import host_rng

VERSION = 1  # of the order itself: a run keeps the version it was started with


@dataclass(frozen=True)
class ShuffleLayout:
    """The constants of an order, chosen once per run and kept in its checkpoints."""

    lanes: int
    block: int
    window: int
    version: int = VERSION

    @staticmethod
    def choose(num_samples: int, mean_bytes: float, batch: int) -> "ShuffleLayout":
        """Choose constants for a set of `num_samples` samples of `mean_bytes` each, at `batch` samples per step.

        A block is about 2 MiB, but small enough that there are many blocks per lane; lanes are a multiple of the
        batch, at least 256; all windows together stay below 512 MiB (the read-ahead of remote shards).
        """
        lanes = batch * -(-256 // batch)
        block = min(64, int(2 * 2**20 / mean_bytes), num_samples // (64 * lanes))
        window = min(64, int(512 * 2**20 / (mean_bytes * lanes)))
        return ShuffleLayout(lanes=lanes, block=max(1, block), window=max(1, window))


def held_out(num_samples: int, num: int) -> np.ndarray:
    """Draw the samples that are kept out of training: one from each of `num` equal stretches; int64, rising.

    A function of the two numbers alone, so that all ranks, resumed runs and runs with other seeds agree.
    """
    ends = np.arange(num + 1) * num_samples // max(num, 1)
    drawn = host_rng.bits(host_rng.key(0, "held out"), np.arange(num)) % np.diff(ends).astype(np.uint64)
    return ends[:-1] + drawn.astype(np.int64)


class ShuffleOrder:
    """The order of a data set whose shard s holds `counts[s]` samples, under one seed.

    A sample id counts samples through the shards in their order: 0 .. num_samples - 1.

    Args:
        samples: For epochs that do not hold every sample once (see `BalancedOrder`): the samples of an epoch, as
            many as `counts` adds up to.
    """

    def __init__(
        self, counts: np.ndarray, layout: ShuffleLayout, seed: int, samples: Callable[[int], np.ndarray] | None = None
    ) -> None:
        if layout.version != VERSION:
            raise ValueError(f"this order is of version {layout.version}, this program writes version {VERSION}")
        counts = np.asarray(counts, np.int64)
        self.layout, self.seed, self._samples_of = layout, seed, samples
        self.num_samples = int(counts.sum())
        if self.num_samples == 0:
            raise ValueError("a plan needs at least one sample")
        self.rows = self.num_samples // layout.lanes  # per lane and epoch
        self._windows = -(-self.rows // layout.window) + 1  # per lane at most, the staggered first one included

        blocks = -(-counts // layout.block)  # per shard
        place = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)  # of a block in its shard
        starts = np.repeat(np.cumsum(counts) - counts, blocks) + place * layout.block
        narrow = np.uint32 if self.num_samples < 2**32 else np.int64  # half as much memory where it suffices
        self._starts = np.append(starts, self.num_samples).astype(narrow)  # of blocks, one after another
        self._sequence = lru_cache(maxsize=2)(self._permuted_blocks)  # a batch may span two epochs

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Return sample ids at global positions; int64, the shape of `positions`."""
        return self._each_epoch(positions, lambda epoch, place: self._samples(epoch, self._shuffled(epoch, place)))

    def windows(self, positions: np.ndarray) -> np.ndarray:
        """Return the window of each position, as a number that `window_ids` understands; int64."""

        def number(epoch: int, place: np.ndarray) -> np.ndarray:
            lane, _, window = self._in_lane(place)
            in_tail = place >= self.rows * self.layout.lanes
            lane, window = np.where(in_tail, 0, lane), np.where(in_tail, self._windows, window)
            return (epoch * (self._windows + 1) + window) * self.layout.lanes + lane

        return self._each_epoch(positions, number)

    def window_ids(self, window: int) -> np.ndarray:
        """Return the samples of a window as they lie in their shards' blocks: what to read ahead."""
        rest, lane = divmod(int(window), self.layout.lanes)
        epoch, in_lane = divmod(rest, self._windows + 1)
        if in_lane == self._windows:
            return self._samples(epoch, np.arange(self.rows * self.layout.lanes, self.num_samples))
        (start,), (stop,) = self._bounds(np.array([lane]), np.array([in_lane]))
        return self._samples(epoch, lane * self.rows + np.arange(start, stop))

    def replacements(self, position: int) -> np.ndarray:
        """Return positions whose samples may replace that of `position`, best first: the rest of its window."""
        epoch, place = divmod(int(position), self.num_samples)
        body = self.rows * self.layout.lanes
        if place >= body:
            first, step, here, size = body, 1, place - body, self.num_samples - body
        else:
            lane, row, window = self._in_lane(np.array([place]))
            (start,), (stop,) = self._bounds(lane, window)
            first, step = int(start) * self.layout.lanes + int(lane[0]), self.layout.lanes
            here, size = int(row[0] - start), int(stop - start)
        return epoch * self.num_samples + first + step * ((here + np.arange(1, size)) % size)

    def _each_epoch(self, positions: np.ndarray, function: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
        """Apply a function to the places of the positions in each of their epochs."""
        positions = np.asarray(positions, np.int64)
        epochs = positions // self.num_samples
        out = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            at = epochs == epoch
            out[at] = function(epoch, positions[at] - epoch * self.num_samples)
        return out

    def _permuted_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's sequence of blocks, and the offset at which each of them ends."""
        order = host_rng.permutation(host_rng.key(self.seed, "blocks", epoch), len(self._starts) - 1)
        return order.astype(np.uint32), np.cumsum(np.diff(self._starts)[order], dtype=self._starts.dtype)

    def _samples(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Return sample ids at offsets of the epoch's sequence of blocks."""
        order, ends = self._sequence(epoch)
        at = np.searchsorted(ends, offsets.astype(ends.dtype), side="right")
        # From the end of the block at `at`, back by what is between there and the offset.
        ids = self._starts[order[at] + np.uint32(1)].astype(np.int64) - (ends[at].astype(np.int64) - offsets)
        return ids if self._samples_of is None else self._samples_of(epoch)[ids]

    def _in_lane(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return lane, row and window of places in an epoch."""
        lane, row = place % self.layout.lanes, place // self.layout.lanes
        return lane, row, (row + self._phase(lane)) // self.layout.window

    def _phase(self, lane: np.ndarray) -> np.ndarray:
        return lane * self.layout.window // self.layout.lanes

    def _bounds(self, lane: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return first and last-plus-one row of a window."""
        start = window * self.layout.window - self._phase(lane)
        return np.maximum(start, 0), np.minimum(start + self.layout.window, self.rows)

    def _shuffled(self, epoch: int, place: np.ndarray) -> np.ndarray:
        """Return offsets in the epoch's sequence of blocks for places in the epoch."""
        body = self.rows * self.layout.lanes
        out = np.empty_like(place)
        tail = place >= body
        if tail.any():
            order = host_rng.permutation(host_rng.key(self.seed, "tail", epoch), self.num_samples - body)
            out[tail] = body + order[place[tail] - body]
        lane, row, window = self._in_lane(place[~tail])
        start, stop = self._bounds(lane, window)
        keys = host_rng.bits(host_rng.bits(host_rng.key(self.seed, "windows", epoch), lane), window)
        draws = host_rng.bits(keys[:, None], np.arange(self.layout.window))
        draws[np.arange(self.layout.window) >= (stop - start)[:, None]] = np.iinfo(np.uint64).max  # rows it lacks
        order = np.argsort(draws, axis=1, kind="stable")
        out[~tail] = lane * self.rows + start + order[np.arange(len(row)), row - start]
        return out


class BalancedOrder:
    """The samples of balanced epochs, each in an order that `ShuffleOrder` shuffles as it does a data set's.

    Takes about 40 bytes for each place of an epoch while one is laid out, and 8 afterwards.

    Args:
        labels: Class of each sample, int [num_samples], from 0 on. Classes without a sample are left out.
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        sizes = np.bincount(labels)
        self.largest, self.num_classes = int(sizes.max()), int((sizes > 0).sum())
        self.num_places = self.largest * self.num_classes  # of each epoch
        self._sizes = sizes[labels]  # of each sample's class
        mixed = host_rng.permutation(host_rng.key(seed, "classes"), len(labels))
        mixed = mixed[np.argsort(labels[mixed], kind="stable")]  # class by class, each in an order of its own
        self._turn = np.empty(len(labels), np.int64)  # of each sample in its class
        self._turn[mixed] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.samples = lru_cache(maxsize=2)(self._samples)  # a batch may span two epochs

    def _samples(self, epoch: int) -> np.ndarray:
        """Return the sample at each place of an epoch; int64 [num_places].

        All samples come once, in the order in which they are stored; then all that come again; and so on. So
        neighbors in this order are neighbors on the disk where that is possible, and never the same image.
        """
        times, more = np.divmod(self.largest, self._sizes)
        times += (self._turn - epoch * more) % self._sizes < more
        samples = np.repeat(np.arange(len(times)), times)
        nth = np.arange(len(samples)) - np.repeat(np.cumsum(times) - times, times)
        return samples[np.argsort(nth, kind="stable")]
