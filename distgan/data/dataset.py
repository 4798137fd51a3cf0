"""Shards as one data set: what they hold, and where each sample lies."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from distgan.data import dataset_card, index_cache, shard_index
from distgan.data.decode import decode_into
from distgan.data.image_format import MAX_PIXELS, SUFFIXES, CorruptImage, check_bytes
from distgan.data.shuffle import held_out
from distgan.errors import DataError, StoppedError, with_hint
from distgan.rng import host_rng
from distgan.storage.byte_ranges import Source
from distgan.storage.home import default_cache_dir
from distgan.storage.urls import is_local, public

MAX_CLASSES = 1_000_000  # a larger label is no class number
LOCATED_BYTES = 192 * 2**20  # for the places of samples in shards; each rank reads its own part of the data set
Gather = Callable[[object], list]  # what this rank found -> what all ranks found, in rank order


@dataclass(frozen=True)
class Located:
    """Samples of one shard that are used, in its order.

    Attributes:
        offset, length: Bytes of the image part.
        label: Class number, -1 where there is none.
        first: Offset of the sample's first tar header, from which its key can be read.
        degraded_offset, degraded_length: Bytes of the degraded image, where samples are pairs.
    """

    offset: np.ndarray
    length: np.ndarray
    label: np.ndarray
    first: np.ndarray
    degraded_offset: np.ndarray | None = None
    degraded_length: np.ndarray | None = None

    @property
    def pictures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Offsets and lengths of the image parts and, of pairs, of the degraded images."""
        found = [(self.offset, self.length)]
        if self.degraded_offset is not None and self.degraded_length is not None:
            found.append((self.degraded_offset, self.degraded_length))
        return found


class Dataset:
    """What a run reads: the usable samples of its shards, numbered 0 .. num_samples - 1 in the shards' order.

    Those that are held out come after, as num_samples .. num_samples + num_held_out - 1.

    Args:
        urls: The shards, as `find_shards` returns them.
        labels: Whether every sample must have a class label.
        classes: How many classes there are; 0 takes the largest label plus one.
        image: Suffix of the image part; empty where it can be told from the names.
        pairs: Whether every sample is a clean image and its degraded form, such as KEY.clean.png and
            KEY.degraded.png.
        num_held_out: Samples that are kept out of training.
        allow_corrupt: Use the good samples of corrupt shards, and leave out incomplete samples.
        rank, world, gather: Ranks share the work of opening the shards, then tell one another what they found.
        should_stop: Returns why to stop, or "". It is called before each shard: many without an index take long.

    Raises:
        DataError: for anything that would make the set other than what its shards seem to promise.
        StoppedError: on all ranks, where one was asked to stop. Indexes that were made are kept.
    """

    def __init__(
        self,
        urls: Sequence[str],
        source: Source,
        *,
        labels: bool = False,
        classes: int = 0,
        image: str = "",
        pairs: bool = False,
        num_held_out: int = 0,
        allow_corrupt: bool = False,
        cache_dir: Path | None = None,
        rank: int = 0,
        world: int = 1,
        gather: Gather = lambda items: [items],
        should_stop: Callable[[], str] = lambda: "",
    ) -> None:
        self.urls, self.source, self.labels, self.pairs = list(urls), source, labels, pairs
        self._should_stop = should_stop
        self._cache_dir = (cache_dir or default_cache_dir()) / "index"
        self.class_names, self._moved = [], [[] for _ in self.urls]
        mine, labels, problem = [], {}, ""
        try:
            if self.labels:
                self.class_names, self._moved = dataset_card.join_classes(self.urls)
            with ThreadPoolExecutor(1 if all(map(is_local, self.urls)) else 16) as pool:
                summaries = pool.map(self._summary, self.urls[rank::world])
                mine, labels = _without_labels(self.urls[rank::world], summaries, self._moved[rank::world])
        except DataError as error:  # told to all ranks, so that all stop
            problem = str(error)
        names = [os.path.basename(public(url)) for url in self.urls]
        lists, shares, found, named, problems = zip(*gather((names, mine, labels, self.class_names, problem)))
        if any(problems):
            raise DataError(next(filter(None, problems)))
        if any(other != named[0] for other in named):
            raise DataError("ranks find other class names in the cards (dataset.json): all nodes need the same data")
        for number, other in enumerate(lists):
            if other != lists[0]:
                raise DataError(
                    f"rank {number} finds other shards than rank 0: {_difference(other, lists[0])}. "
                    "All nodes need the same data"
                )
        shards = [shares[i % world][i // world] for i in range(len(self.urls))]
        if reasons := {shard["stopped"] for shard in shards if "stopped" in shard}:
            raise StoppedError(min(reasons))  # a person's wish wins, on every rank
        for url, shard in zip(self.urls, shards):
            if "error" in shard:
                raise DataError(shard["error"])
            source.expect(url, shard["size"])

        self.problems = [f"{public(u)}: {defect}" for u, shard in zip(self.urls, shards) for defect in shard["defects"]]
        labelled = ["cls" in kind for shard in shards for kind in shard["kinds"]]
        self.has_labels, self.has_some_labels = all(labelled), any(labelled)
        if pairs:
            self._image, self._degraded = _pair_suffixes(shards)
        else:
            self._image, self._degraded = _image_suffixes(shards, image, allow_corrupt), set()
        if self.labels and labelled and not self.has_some_labels:
            raise DataError(
                f"no class labels in {len(self.urls)} shard(s), {public(self.urls[0])} first: pack a folder with a "
                "sub-folder for each class and no image next to these, or set model.conditional=false; where "
                "labels are in another part, `distgan pack SHARDS OUT --label json:KEY` makes shards with them"
            )
        incomplete = self._incomplete(shards)
        if (self.problems or incomplete) and not allow_corrupt:
            raise DataError(_damage_report(self.problems + incomplete))
        self.problems += incomplete

        usable = np.array([self._usable(shard) for shard in shards], np.int64)
        total = int(usable.sum())
        if total == 0:
            raise DataError(f"data.shards: {len(self.urls)} shard(s) without a sample, from {public(self.urls[0])} on")
        if num_held_out >= total:
            raise DataError(f"data.holdout={num_held_out} leaves nothing to train on: the data set has {total} samples")
        held, ends = held_out(total, num_held_out), np.cumsum(usable)
        places = held - np.repeat(ends - usable, np.diff(np.searchsorted(held, ends, "left"), prepend=0))
        self._held = np.split(places, np.searchsorted(held, ends[:-1]))  # of each shard, places among its usable ones
        self.num_held_out = num_held_out
        self.counts = usable - [len(held) for held in self._held]
        self.num_samples = total - num_held_out
        self._ends = np.cumsum(self.counts)
        self.mean_bytes = sum(shard["size"] for shard in shards) / self.num_samples
        self.class_counts = self._class_counts(found, classes)
        self.num_classes = len(self.class_counts)
        self.fingerprint = hashlib.sha256(
            "".join(
                f"{os.path.basename(public(u))} {s['size']} {s['samples']} {s['digest']}\n"
                for u, s in zip(self.urls, shards)
            ).encode()
            + (json.dumps(self._moved).encode() if any(self._moved) else b"")
        ).hexdigest()
        self._digests = [shard["digest"] for shard in shards]
        room = max(LOCATED_BYTES // world, LOCATED_BYTES // 8) / (24 * max(1, self.counts.mean()))
        self._open = lru_cache(maxsize=int(min(1024, max(16, room))))(self._locate_shard)

    def shard_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number, and place among its usable samples, of each sample id."""
        shard = np.searchsorted(self._ends, ids, side="right")
        return shard, ids - (self._ends[shard] - self.counts[shard])

    def located(self, shard: int) -> Located:
        """The usable samples of a shard."""
        return self._open(shard)[0]

    def read_labels(self) -> np.ndarray:
        """The class of every sample, from the index of every shard; int32 [num_samples]."""
        return np.concatenate([self.located(shard).label for shard in range(len(self.urls))])

    def examples(self, num: int, seed: int, labels: Sequence[int] | None = None) -> list[int]:
        """Some samples by a fixed choice, of the given classes where there are enough of them at hand."""
        drawn = (
            host_rng.bits(host_rng.key(seed, "examples"), np.arange(64 * num)) % np.uint64(self.num_samples)
        ).astype(int)
        drawn = list(dict.fromkeys(drawn.tolist()))
        if labels is None:
            return list(itertools.islice(itertools.cycle(drawn), num))
        by_label: dict[int, list[int]] = {}
        for sample in drawn:
            shard, place = (int(x) for x in self.shard_of(np.int64(sample)))
            by_label.setdefault(int(self.located(shard).label[place]), []).append(sample)
        cycles = {label: itertools.cycle(by_label.get(label, drawn)) for label in set(labels)}
        return [next(cycles[label]) for label in labels]

    def read(self, sample: int, resolution: int, filter: str, crop: str, degraded: bool = False) -> np.ndarray:
        """One image at the given resolution, uint8 [R, R, 3]; white where it is corrupt. Of a pair, either."""
        shard, located, place = self._find(sample)
        offset, length = located.pictures[degraded]
        out = np.empty((resolution, resolution, 3), np.uint8)
        try:
            check_bytes(int(length[place]))
            data = self.source.cached(self.urls[shard], int(offset[place]), int(length[place]))
            decode_into(data, out, max_pixels=MAX_PIXELS, filter=filter, crop=crop)
        except CorruptImage:
            out[:] = 255
        return out

    def stored(self, sample: int) -> list[bytes]:
        """The bytes of a sample's image, or of both images of a pair. Raises BadImage where they are too many."""
        shard, located, place = self._find(sample)
        spans = [(int(offset[place]), int(length[place])) for offset, length in located.pictures]
        for _, length in spans:
            check_bytes(length)
        return [self.source.cached(self.urls[shard], *span) for span in spans]

    def key(self, sample: int) -> tuple[str, str]:
        """Address of a sample's shard, and its key."""
        shard, located, place = self._find(sample)
        url = self.urls[shard]
        return public(url), shard_index.key_of(url, self.source, int(located.first[place]))

    def label(self, sample: int) -> int:
        """The class of a sample; -1 where it has none."""
        _, located, place = self._find(sample)
        return int(located.label[place])

    def _find(self, sample: int) -> tuple[int, Located, int]:
        """Shard of a sample, held out or not, and where in which list of that shard it stands."""
        if sample < self.num_samples:
            shard, place = (int(x) for x in self.shard_of(np.int64(sample)))
            return shard, self.located(shard), place
        ends = np.cumsum([len(held) for held in self._held])
        place = sample - self.num_samples
        shard = int(np.searchsorted(ends, place, side="right"))
        return shard, self._open(shard)[1], place - int(ends[shard]) + len(self._held[shard])

    def _summary(self, url: str) -> dict:
        if reason := self._should_stop():
            return {"stopped": reason}
        try:
            return index_cache.summary(url, self.source, self._cache_dir)
        except (DataError, OSError) as error:  # told to all ranks, so that all stop
            return {"error": with_hint(str(error))}

    def _complete(self, kind: Sequence[str]) -> bool:
        """Whether a sample with these parts can be used."""
        return not self._lacks(kind)

    def _lacks(self, kind: Sequence[str]) -> str:
        """What keeps a sample with these parts from being used."""
        for suffixes, what in ((self._image, "clean" if self.pairs else "image"), (self._degraded, "degraded")):
            num = sum(part in suffixes for part in kind)
            if num != 1 and (self.pairs or what == "image"):
                return f"several {what} parts" if num else f"no {what} part"
        return "no cls part" if self.labels and "cls" not in kind else ""

    def _usable(self, shard: dict) -> int:
        return sum(count for kind, count in zip(shard["kinds"], shard["kind_counts"]) if self._complete(kind))

    def _incomplete(self, shards: list[dict]) -> list[str]:
        lines = []
        for url, shard in zip(self.urls, shards):
            for kind, count in zip(shard["kinds"], shard["kind_counts"]):
                if lacks := self._lacks(kind):
                    lines.append(f"{public(url)}: {count} sample(s) with {lacks}; parts: {' '.join(kind)}")
        return lines

    def _class_counts(self, found: Sequence["Labels"], classes: int) -> list[int]:
        """Samples of each class; empty where labels are not asked for. `found` is what each rank found."""
        if not self.labels:
            return []
        counts = Counter()
        for (kind, label), (url, count, total) in itertools.chain.from_iterable(share.items() for share in found):
            if not self._complete(kind):
                continue
            if label == shard_index.BAD_LABEL:
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

    def _locate_shard(self, shard: int) -> tuple[Located, Located]:
        """Its samples to train on, and those held out."""
        found = index_cache.load(self.urls[shard], self.source, self._cache_dir)
        parts = np.array([len(kind) for kind in found.kinds], np.int64)
        good = np.array([self._complete(kind) for kind in found.kinds], bool)[found.kind]
        start = np.cumsum(parts[found.kind]) - parts[found.kind]

        def spans(suffixes: set[str]) -> tuple[np.ndarray, np.ndarray]:
            column = np.array([next((i for i, p in enumerate(k) if p in suffixes), 0) for k in found.kinds], np.int64)
            at = (start + column[found.kind])[good]
            return found.offset[at], found.length[at]

        if found.digest != self._digests[shard]:
            raise DataError(
                f"{public(self.urls[shard])} is not the shard that this run started with: it changed meanwhile, or "
                "another node has another one"
            )
        labels = moved(found.label[good], self._moved[shard], self.urls[shard])
        columns = [*spans(self._image), labels, found.first[good]]
        columns += spans(self._degraded) if self.pairs else ()
        held = np.zeros(int(good.sum()), bool)
        held[self._held[shard]] = True
        return Located(*(column[~held] for column in columns)), Located(*(column[held] for column in columns))


# By kind of sample and label: the first shard that has it, how many samples there, and how many in all.
Labels = dict[tuple[tuple[str, ...], int], tuple[str, int, int]]


def moved(labels: np.ndarray, numbers: Sequence[int], url: str) -> np.ndarray:
    """Labels as the joined set has them: i becomes `numbers[i]`; all stay where there are none."""
    if not len(numbers):
        return labels
    if labels.max(initial=-1) >= len(numbers):
        raise DataError(f"{public(url)}: label {labels.max()}, but its card names {len(numbers)} classes only")
    return np.where(labels < 0, labels, np.array(numbers, labels.dtype)[labels.clip(0)])


def _without_labels(
    urls: Sequence[str], summaries: Iterable[dict], numbers: Sequence[Sequence[int]]
) -> tuple[list[dict], Labels]:
    """Summaries of shards, and their labels added up: thousands of shards with thousands of classes are too many."""
    rest, labels = [], {}
    for url, shard, become in zip(urls, summaries, numbers):
        for kind, label, count in shard_index.label_counts(shard) if "labels" in shard else ():
            if become and 0 <= label < MAX_CLASSES:
                label = int(moved(np.array([label]), become, url)[0])
            key = tuple(shard["kinds"][kind]), label
            first, there, total = labels.get(key, (url, count, 0))
            labels[key] = first, there, total + count
        rest.append({name: value for name, value in shard.items() if name != "labels"})
    return rest, labels


def _image_suffixes(shards: list[dict], chosen: str, allow_corrupt: bool) -> set[str]:
    """The suffixes that mark an image part."""
    if chosen:
        return {chosen.lower()}
    kinds = Counter()
    for shard in shards:
        kinds.update({tuple(kind): count for kind, count in zip(shard["kinds"], shard["kind_counts"])})
    found = {part for kind in kinds for part in kind if part in SUFFIXES}
    ambiguous = [kind for kind in kinds if sum(part in found for part in kind) > 1]
    if ambiguous and not allow_corrupt:
        names = ", ".join(sorted(part for part in ambiguous[0] if part in found))
        raise DataError(f"samples have several image parts ({names}): set data.image_key to the one to train on")
    if kinds and not found:
        seen = ", ".join(sorted({part for kind in kinds for part in kind})[:12])
        raise DataError(
            f"no image part in the shards, only {seen}: set data.image_key if one of these is an image, or, "
            "where keys have dots or images and labels are apart, let `distgan pack` make shards of them"
        )
    return found


def _pair_suffixes(shards: list[dict]) -> tuple[set[str], set[str]]:
    """The suffixes that mark the clean and the degraded part of a pair."""
    parts = {part for shard in shards for kind in shard["kinds"] for part in kind}
    clean, degraded = ({f"{side}.{suffix}" for suffix in SUFFIXES} & parts for side in ("clean", "degraded"))
    if parts and not (clean and degraded):
        seen = ", ".join(sorted(parts)[:12])
        raise DataError(
            f"no pairs in the shards, only {seen}: a sample needs a clean and a degraded part, as KEY.clean.png and "
            "KEY.degraded.png (`distgan pack CLEAN OUT --degraded FOLDER` makes them); or set restore.degrade"
        )
    return clean, degraded


def _difference(some: list[str], others: list[str]) -> str:
    lacks, has = sorted(set(others) - set(some)), sorted(set(some) - set(others))
    words = [f"{word} {', '.join(names[:3])}" for word, names in (("it lacks", lacks), ("it alone has", has)) if names]
    return "; ".join(words) or f"{len(some)} and {len(others)}, or another order"


def _damage_report(problems: list[str]) -> str:
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return (
        f"the data set is corrupt: {'; '.join(problems[:3])}{more}. "
        "Replace the shards, or set data.allow_corrupt=true to train on the good samples"
    )
