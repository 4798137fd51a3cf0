"""Shards opened by all ranks together: each rank reads the indexes of its share, and all agree on what there is."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distgan.data import dataset_card, index_cache
from distgan.data.shard_index import MAX_CLASSES, IndexHead, label_counts
from distgan.errors import DataError, StoppedError, StopReason, with_hint
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.urls import is_local, public

Gather = Callable[[object], list]  # a value of this rank -> those of all ranks, in rank order
# By parts of a sample and label: the first shard that has such samples, how many there, and how many in all.
LabelCounts = dict[tuple[tuple[str, ...], int], tuple[str, int, int]]


@dataclass(frozen=True)
class RankInfo:
    """One of the processes that share a data set; by default there is no other.

    Attributes:
        rank, size: Its number, and how many processes there are.
        gather: Passes a value of each rank to all ranks.
    """

    rank: int = 0
    size: int = 1
    gather: Gather = lambda value: [value]


ALONE = RankInfo()


@dataclass(frozen=True)
class OpenedShards:
    """The summary of the shards, equal on all ranks.

    Attributes:
        heads: The summary of each shard, without its labels.
        labels: Labels of the samples of each rank's share.
        class_names: Names of the classes, where cards give some.
        new_labels: For each shard, the class that its label i becomes; empty where labels stay as they are.
    """

    heads: list[IndexHead]
    labels: list[LabelCounts]
    class_names: list[str]
    new_labels: list[list[int]]


@dataclass(frozen=True)
class _Failure:
    """The reason why the summary of a shard is missing."""

    error: str = ""
    stopped: StopReason = StopReason.NONE


@dataclass
class _Share:
    """The message of one rank to the others; `problem` ends the work of all."""

    names: list[str]
    class_names: list[str] = field(default_factory=list)
    results: list[IndexHead | _Failure] = field(default_factory=list)
    labels: LabelCounts = field(default_factory=dict)
    problem: str = ""


def open_shards(
    urls: Sequence[str],
    source: ByteRangeReader,
    cache_dir: Path,
    *,
    join_classes: bool,
    ranks: RankInfo,
    should_stop: Callable[[], StopReason],
) -> OpenedShards:
    """Read the summaries of all shards, each rank those of its share.

    Args:
        cache_dir: Folder of indexes that cannot be next to their shards.
        join_classes: Whether to match the classes of sets that were packed apart.

    Raises:
        DataError: on all ranks, where one of them cannot read a shard, or sees other shards than rank 0.
        StoppedError: on all ranks, where one was asked to stop. Indexes that were made are kept.
    """
    mine = _Share([os.path.basename(public(url)) for url in urls])
    new_labels: list[list[int]] = [[] for _ in urls]
    try:
        if join_classes:
            mine.class_names, new_labels = dataset_card.join_classes(urls)
        my_urls, my_new_labels = urls[ranks.rank :: ranks.size], new_labels[ranks.rank :: ranks.size]
        with ThreadPoolExecutor(1 if all(map(is_local, urls)) else 16) as pool:
            results = pool.map(lambda url: _read_head(url, source, cache_dir, should_stop), my_urls)
            mine.results, mine.labels = _add_labels(my_urls, results, my_new_labels)
    except DataError as error:  # sent to all ranks, so that all stop
        mine.problem = str(error)
    shares: list[_Share] = ranks.gather(mine)
    _require_agreement(shares)
    all_results = [shares[i % ranks.size].results[i // ranks.size] for i in range(len(urls))]
    if reasons := {result.stopped for result in all_results if isinstance(result, _Failure) and result.stopped}:
        raise StoppedError(max(reasons))  # a person's wish wins, on every rank
    heads: list[IndexHead] = []
    for url, result in zip(urls, all_results):
        if isinstance(result, _Failure):
            raise DataError(result.error)
        source.expect(url, result["size"])
        heads.append(result)
    return OpenedShards(heads, [share.labels for share in shares], shares[0].class_names, new_labels)


def _read_head(
    url: str, source: ByteRangeReader, cache_dir: Path, should_stop: Callable[[], StopReason]
) -> IndexHead | _Failure:
    """Return the summary of a shard, or why it is not there."""
    if reason := should_stop():
        return _Failure(stopped=reason)
    try:
        return index_cache.summary(url, source, cache_dir)
    except (DataError, OSError) as error:  # sent to all ranks, so that all stop
        return _Failure(error=with_hint(str(error)))


def _add_labels(
    urls: Sequence[str], heads: Iterable[IndexHead | _Failure], new_labels: Sequence[Sequence[int]]
) -> tuple[list[IndexHead | _Failure], LabelCounts]:
    """Return summaries without their labels, and the labels added up: those of all shards one by one are too many."""
    bare: list[IndexHead | _Failure] = []
    sums: LabelCounts = {}
    for url, head, numbers in zip(urls, heads, new_labels):
        if isinstance(head, _Failure):
            bare.append(head)
            continue
        for kind, label, count in label_counts(head):
            if numbers and 0 <= label < MAX_CLASSES:
                label = int(renumbered(np.array([label]), numbers, url)[0])
            key = tuple(head["kinds"][kind]), label
            first, num_there, total = sums.get(key, (url, count, 0))
            sums[key] = first, num_there, total + count
        bare.append({**head, "labels": ""})
    return bare, sums


def renumbered(labels: np.ndarray, new_labels: Sequence[int], url: str) -> np.ndarray:
    """Return labels as the joined set has them: i becomes `new_labels[i]`; all stay where there are none."""
    if not len(new_labels):
        return labels
    if labels.max(initial=-1) >= len(new_labels):
        raise DataError(f"{public(url)}: label {labels.max()}, but its card names {len(new_labels)} classes only")
    return np.where(labels < 0, labels, np.array(new_labels, labels.dtype)[labels.clip(0)])


def _require_agreement(shares: Sequence[_Share]) -> None:
    """Refuse what one rank cannot do, or sees otherwise than rank 0. Raises DataError."""
    if problems := [share.problem for share in shares if share.problem]:
        raise DataError(problems[0])
    if any(share.class_names != shares[0].class_names for share in shares):
        raise DataError("ranks find other class names in the cards (dataset.json): all nodes need the same data")
    for rank, share in enumerate(shares):
        if share.names != shares[0].names:
            raise DataError(
                f"rank {rank} finds other shards than rank 0: {_difference(share.names, shares[0].names)}. "
                "All nodes need the same data"
            )


def _difference(some: list[str], others: list[str]) -> str:
    """Return which names only one of two lists has."""
    lacks, has = sorted(set(others) - set(some)), sorted(set(some) - set(others))
    sides = [f"{side} {', '.join(names[:3])}" for side, names in (("it lacks", lacks), ("it alone has", has)) if names]
    return "; ".join(sides) or f"{len(some)} and {len(others)}, or another order"
