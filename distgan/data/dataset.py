"""Shards as one data set: their samples, classes and offsets."""

import contextlib
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from distgan.condition_spec import num_examples
from distgan.data import index_cache
from distgan.data.condition_table import PART
from distgan.data.dataset_conditions import ConditionParts, read_fields, with_dropout
from distgan.data.decode import DecodeOptions, decode_into
from distgan.data.image_format import CorruptImage, check_bytes
from distgan.data.open_shards import ALONE, LabelCounts, RankInfo, open_shards, renumbered
from distgan.data.sample_parts import DatasetOptions, SampleParts, choose_parts
from distgan.data.shard_index import BAD_LABEL, MAX_CLASSES, IndexHead, key_of
from distgan.data.shuffle import held_out
from distgan.errors import DataError, StopReason
from distgan.rng import host_rng
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.home import default_cache_dir
from distgan.storage.urls import public

LOCATED_BYTES = 192 * 2**20  # for the places of samples in shards; each rank reads its own part of the data set
UNLABELED = DatasetOptions()  # every sample with an image

Spans = tuple[np.ndarray, np.ndarray]  # offsets and lengths of one part of some samples


@dataclass(frozen=True)
class SampleLocations:
    """Samples of one shard that are used, in its order.

    Attributes:
        offset, length: Bytes of the image part.
        label: Class number, -1 where there is none.
        first: Offset of the sample's first tar header, from which its key can be read.
        degraded_offset, degraded_length: Bytes of the degraded image, where samples are pairs.
        stacked: Offsets and lengths of further parts of the image, whose channels follow.
        condition: Offset and length of the part with the conditions, where these are asked for.
    """

    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    first: np.ndarray
    degraded_offset: np.ndarray | None = None
    degraded_length: np.ndarray | None = None
    stacked: tuple[Spans, ...] = ()
    condition: Spans | None = None

    @property
    def images(self) -> list[list[Spans]]:
        """Return the parts of the image and, of pairs, that of the degraded image."""
        clean = [(self.offset, self.length), *self.stacked]
        if self.degraded_offset is None or self.degraded_length is None:
            return [clean]
        return [clean, [(self.degraded_offset, self.degraded_length)]]

    @property
    def all_parts(self) -> list[Spans]:
        """Return all parts that are read."""
        return [part for image in self.images for part in image] + ([] if self.condition is None else [self.condition])


class Dataset:
    """The data set of a run: the usable samples of its shards, numbered 0 .. num_samples - 1 in the shards' order.

    Those that are held out come after, as num_samples .. num_samples + num_held_out - 1.

    Attributes:
        problems: What is wrong with the data, one line each, where that is allowed.
        counts: Samples of each shard to train on; int64 [shards].
        class_counts: Samples of each class; empty where labels are not asked for.
        label_input: What networks are given as labels: the number of classes, or the kind of vectors.
        conditions: The conditions that were asked for, None without them; a run that resumes sets its own.
        dropout: As of the options.
        fingerprint: A hash of what the shards hold.

    Args:
        urls: The shards, as `find_shards` returns them.
        ranks: Ranks share the work of opening the shards.
        cache_dir: Folder of indexes that cannot be next to their shards; None: the user's cache.
        should_stop: Returns why to stop, if at all. It is called before each shard: many without an index take long.

    Raises:
        DataError: for anything that would make the set other than what its shards seem to promise.
        StoppedError: on all ranks, where one was asked to stop. Indexes that were made are kept.
    """

    def __init__(
        self,
        urls: Sequence[str],
        source: ByteRangeReader,
        options: DatasetOptions = UNLABELED,
        ranks: RankInfo = ALONE,
        *,
        cache_dir: Path | None = None,
        should_stop: Callable[[], StopReason] = lambda: StopReason.NONE,
    ) -> None:
        self.urls, self.source = list(urls), source
        self.labels, self.pairs, self.num_held_out = options.labels, options.pairs, options.num_held_out
        self.dropout = options.dropout
        self._cache_dir = (cache_dir or default_cache_dir()) / "index"
        self._condition_parts, self.conditions = None, None
        if options.conditions:
            self._condition_parts = ConditionParts(read_fields(self.urls, source), options.conditions)
            self.conditions = with_dropout(self._condition_parts.conditions, options.dropout)
        opened = open_shards(
            self.urls, source, self._cache_dir, join_classes=self.labels, ranks=ranks, should_stop=should_stop
        )
        shards, self.class_names, self._new_labels = opened.heads, opened.class_names, opened.new_labels
        labeled = ["cls" in kind for shard in shards for kind in shard["kinds"]]
        self.has_labels, self.has_some_labels = all(labeled), any(labeled)
        self._parts = choose_parts(shards, options)
        if self.labels and labeled and not self.has_some_labels:
            raise DataError(
                f"no class labels in {len(self.urls)} shard(s), {public(self.urls[0])} first: pack a folder with a "
                "sub-folder for each class and no image next to these, or set model.conditional=false; where "
                "labels are in another part, `distgan pack SHARDS OUT --label json:KEY` makes shards with them"
            )
        self.problems = _problems(self.urls, shards, self._parts, options.allow_corrupt)

        usable = np.array([self._parts.num_usable(shard) for shard in shards], np.int64)
        if not usable.sum():
            raise DataError(f"data.shards: {len(self.urls)} shard(s) without a sample, from {public(self.urls[0])} on")
        self._held = _split_held_out(usable, self.num_held_out)
        self.counts = usable - [len(held) for held in self._held]
        self.num_samples = int(self.counts.sum())
        self._ends = np.cumsum(self.counts)
        self.mean_bytes = sum(shard["size"] for shard in shards) / self.num_samples
        self.class_counts = _class_counts(opened.labels, self._parts, options.classes) if self.labels else []
        self.num_classes = len(self.class_counts)
        self.label_input = self.num_classes if self.conditions is None else self.conditions.input
        self.fingerprint = _fingerprint(self.urls, shards, self._new_labels)
        self._digests = [shard["digest"] for shard in shards]
        room = max(LOCATED_BYTES // ranks.size, LOCATED_BYTES // 8) / (24 * max(1, self.counts.mean()))
        self._open = lru_cache(maxsize=int(min(1024, max(16, room))))(self._locate_shard)

    def shard_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard of each sample id, and its place among the usable samples there."""
        shard = np.searchsorted(self._ends, ids, side="right")
        return shard, ids - (self._ends[shard] - self.counts[shard])

    def located(self, shard: int) -> SampleLocations:
        """Return the offsets of the usable samples of a shard."""
        return self._open(shard)[0]

    def read_labels(self) -> np.ndarray:
        """Read the class of every sample, from the index of every shard; int32 [num_samples]."""
        return np.concatenate([self.located(shard).label for shard in range(len(self.urls))])

    def fixed_samples(self, num: int, seed: int, labels: Sequence[int] | None = None) -> list[int]:
        """Return some samples by a fixed choice, of the given classes where the data set has enough of them."""
        bits = host_rng.bits(host_rng.key(seed, "examples"), np.arange(64 * num))
        drawn = list(dict.fromkeys((bits % np.uint64(self.num_samples)).astype(int).tolist()))
        if labels is None:
            return list(itertools.islice(itertools.cycle(drawn), num))
        by_label: dict[int, list[int]] = {}
        for sample in drawn:
            by_label.setdefault(self.label(sample), []).append(sample)
        cycles = {label: itertools.cycle(by_label.get(label, drawn)) for label in set(labels)}
        return [next(cycles[label]) for label in labels]

    def read(self, sample: int, options: DecodeOptions, degraded: bool = False) -> np.ndarray:
        """Read one image, [H, W, C] of `options.image`; white where it is corrupt. Of a pair, either."""
        shard, located, place = self._find(sample)
        out = np.empty(options.image.shape, options.image.dtype)
        try:
            decode_into(self.fetch(shard, located.images[degraded], place), out, options)
        except CorruptImage:
            out[:] = options.image.high
        return out

    def condition(self, sample: int) -> np.ndarray:
        """Read the values of a sample's conditions, float32 [R]. Raises CorruptImage."""
        shard, located, place = self._find(sample)
        return self.condition_at(shard, located, place)

    def condition_at(self, shard: int, located: SampleLocations, place: int) -> np.ndarray:
        """Read the values of the conditions of a sample that was found. Raises CorruptImage."""
        assert self._condition_parts is not None
        assert located.condition is not None
        data = self.fetch(shard, [located.condition], place)
        assert isinstance(data, bytes)  # of one part
        return self._condition_parts.parse(data)

    def example_conditions(self) -> np.ndarray:
        """Return the values of conditions of some samples, by a fixed choice; float32 [N, R].

        Corrupt samples are left out. Raises DataError where all are.
        """
        assert self.conditions is not None
        num = min(num_examples(self.conditions.num_values), self.num_samples)
        rows = []
        for sample in self.fixed_samples(num, 0):
            with contextlib.suppress(CorruptImage):
                rows.append(self.condition(sample))
        if not rows:
            raise DataError(f"{public(self.urls[0])}: no sample among {num:,} has conditions that can be read")
        return np.stack(rows)

    def stored(self, sample: int) -> list[bytes | list[bytes]]:
        """Read the bytes of a sample's image, or of both images of a pair. Raises CorruptImage for too many."""
        shard, located, place = self._find(sample)
        return [self.fetch(shard, parts, place) for parts in located.images]

    def fetch(self, shard: int, parts: Sequence[Spans], place: int) -> bytes | list[bytes]:
        """Read the bytes of an image, or of each of its parts. Raises CorruptImage for too many."""
        for _, length in parts:
            check_bytes(int(length[place]))
        url = self.urls[shard]
        files = [self.source.cached(url, int(offset[place]), int(length[place])) for offset, length in parts]
        return files if len(files) > 1 else files[0]

    def key(self, sample: int) -> tuple[str, str]:
        """Return the address of a sample's shard, and its key."""
        shard, located, place = self._find(sample)
        url = self.urls[shard]
        return public(url), key_of(url, self.source, int(located.first[place]))

    def label(self, sample: int) -> int:
        """Return the class of a sample; -1 where it has none."""
        _, located, place = self._find(sample)
        return int(located.label[place])

    def _find(self, sample: int) -> tuple[int, SampleLocations, int]:
        """Return the shard of a sample, the list that it is in, used or held out, and its place there."""
        if sample < self.num_samples:
            shards, places = self.shard_of(np.array([sample]))
            return int(shards[0]), self.located(int(shards[0])), int(places[0])
        ends = np.cumsum([len(held) for held in self._held])
        place = sample - self.num_samples
        shard = int(np.searchsorted(ends, place, side="right"))
        return shard, self._open(shard)[1], place - int(ends[shard]) + len(self._held[shard])

    def _locate_shard(self, shard: int) -> tuple[SampleLocations, SampleLocations]:
        """Return the samples of a shard to train on, and those held out."""
        index = index_cache.load(self.urls[shard], self.source, self._cache_dir)
        if index.digest != self._digests[shard]:
            raise DataError(
                f"{public(self.urls[shard])} is not the shard that this run started with: it changed meanwhile, or "
                "another node has another one"
            )
        num_parts = np.array([len(kind) for kind in index.kinds], np.int64)[index.kind]
        first_part = np.cumsum(num_parts) - num_parts
        good = np.array([not self._parts.missing(kind) for kind in index.kinds], bool)[index.kind]

        def spans(suffixes: frozenset[str]) -> tuple[np.ndarray, np.ndarray]:
            column = [next((i for i, part in enumerate(kind) if part in suffixes), 0) for kind in index.kinds]
            at = (first_part + np.array(column, np.int64)[index.kind])[good]
            return index.offset[at], index.length[at]

        labels = renumbered(index.label[good], self._new_labels[shard], self.urls[shard])
        columns = [*spans(self._parts.image), labels, index.first[good]]
        columns += spans(self._parts.degraded) if self._parts.degraded is not None else ()
        stacked = [spans(frozenset([suffix])) for suffix in self._parts.stacked]
        condition = spans(frozenset([PART])) if self._condition_parts is not None else None
        held = np.zeros(int(good.sum()), bool)
        held[self._held[shard]] = True

        def chosen(samples: np.ndarray) -> SampleLocations:
            further = tuple((offset[samples], length[samples]) for offset, length in stacked)
            found = replace(SampleLocations(*(column[samples] for column in columns)), stacked=further)
            if condition is None:
                return found
            return replace(found, condition=(condition[0][samples], condition[1][samples]))

        return chosen(~held), chosen(held)


def _problems(urls: Sequence[str], shards: Sequence[IndexHead], parts: SampleParts, allow_corrupt: bool) -> list[str]:
    """Return what is wrong with shards, one line each. Raises DataError where there is something, unless allowed."""
    problems = [f"{public(url)}: {defect}" for url, shard in zip(urls, shards) for defect in shard["defects"]]
    problems += [line for url, shard in zip(urls, shards) for line in parts.incomplete(public(url), shard)]
    if problems and not allow_corrupt:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DataError(
            f"the data set is corrupt: {'; '.join(problems[:3])}{more}. "
            "Replace the shards, or set data.allow_corrupt=true to train on the good samples"
        )
    return problems


def _split_held_out(usable: np.ndarray, num_held_out: int) -> list[np.ndarray]:
    """Return, for each shard, which of its usable samples are held out, as places among these."""
    total = int(usable.sum())
    if num_held_out >= total:
        raise DataError(f"data.holdout={num_held_out} leaves nothing to train on: the data set has {total} samples")
    held, ends = held_out(total, num_held_out), np.cumsum(usable)
    places = held - np.repeat(ends - usable, np.diff(np.searchsorted(held, ends, "left"), prepend=0))
    return np.split(places, np.searchsorted(held, ends[:-1]))


def _class_counts(shares: Sequence[LabelCounts], parts: SampleParts, classes: int) -> list[int]:
    """Return how many samples each class has, from what each rank found. Raises DataError for labels of no use."""
    counts: Counter[int] = Counter()
    for (kind, label), (url, count, total) in itertools.chain.from_iterable(share.items() for share in shares):
        if parts.missing(kind):
            continue
        if label == BAD_LABEL:
            raise DataError(
                f"{public(url)}: {count} cls part(s) hold no whole number from 0 on: "
                "`distgan pack SHARDS OUT` makes classes of names"
            )
        if label >= MAX_CLASSES:
            raise DataError(f"{public(url)}: label {label}: more than {MAX_CLASSES:,} classes")
        if classes and label >= classes:
            raise DataError(f"{public(url)}: label {label} is outside of data.classes={classes}")
        counts[label] += total
    return [counts[label] for label in range(classes or max(counts) + 1)]


def _fingerprint(urls: Sequence[str], shards: Sequence[IndexHead], new_labels: Sequence[Sequence[int]]) -> str:
    """Return a hash of the shards' names and contents, and of labels that are renumbered."""
    lines = (
        f"{os.path.basename(public(url))} {shard['size']} {shard['samples']} {shard['digest']}\n"
        for url, shard in zip(urls, shards)
    )
    return hashlib.sha256(
        "".join(lines).encode() + (json.dumps(new_labels).encode() if any(new_labels) else b"")
    ).hexdigest()
