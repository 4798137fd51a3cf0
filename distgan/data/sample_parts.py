"""Choose which samples of a data set are used, by the parts that they have."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distgan.data.condition_table import PART
from distgan.data.image_format import ARRAYS, SUFFIXES
from distgan.data.shard_index import IndexHead
from distgan.errors import DataError


@dataclass(frozen=True)
class DatasetOptions:
    """Requirements on a data set's samples.

    Attributes:
        labels: Whether every sample must have a class label.
        classes: How many classes there are; 0 takes the largest label plus one.
        image: Suffix of the image part; empty where it can be found from the names. Several, with commas between them:
            their channels are stacked in that order.
        pairs: Whether every sample is a clean image and its degraded form, such as KEY.clean.png and
            KEY.degraded.png.
        num_held_out: Samples that are kept out of training.
        allow_corrupt: Use the good samples of corrupt shards, and leave out incomplete samples.
        conditions: Names of the conditions that every sample must have, or "all"; see `dataset_conditions`.
        dropout: Share of samples, in training, that are shown without each of them.
    """

    labels: bool = False
    classes: int = 0
    image: str = ""
    pairs: bool = False
    num_held_out: int = 0
    allow_corrupt: bool = False
    conditions: tuple[str, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True)
class SampleParts:
    """The parts that a sample needs, by their suffixes.

    Attributes:
        image: Suffixes of which one marks the image, or the clean image of a pair.
        degraded: Suffixes of which one marks the degraded image of a pair; None where samples are no pairs.
        needs_label: Whether there must be a `cls` part.
        stacked: Suffixes of parts whose channels follow those of the image part.
        needs_condition: Whether there must be a `condition.npy` part.
    """

    image: frozenset[str]
    degraded: frozenset[str] | None
    needs_label: bool
    stacked: tuple[str, ...] = ()
    needs_condition: bool = False

    def missing(self, kind: Sequence[str]) -> str:
        """Return what keeps a sample with these parts from being used; empty where nothing does."""
        needed = [("image" if self.degraded is None else "clean", self.image)]
        needed += [] if self.degraded is None else [("degraded", self.degraded)]
        for name, suffixes in needed:
            num = sum(part in suffixes for part in kind)
            if num != 1:
                return f"several {name} parts" if num else f"no {name} part"
        for suffix in self.stacked:
            if kind.count(suffix) != 1:
                return f"several {suffix} parts" if suffix in kind else f"no {suffix} part"
        if self.needs_condition and PART not in kind:
            return f"no {PART} part"
        return "no cls part" if self.needs_label and "cls" not in kind else ""

    def num_usable(self, shard: IndexHead) -> int:
        """Return how many samples of a shard can be used."""
        return sum(count for kind, count in zip(shard["kinds"], shard["kind_counts"]) if not self.missing(kind))

    def incomplete(self, name: str, shard: IndexHead) -> list[str]:
        """Return a line for each kind of samples of a shard that cannot be used."""
        return [
            f"{name}: {count} sample(s) with {missing}; parts: {' '.join(kind)}"
            for kind, count in zip(shard["kinds"], shard["kind_counts"])
            if (missing := self.missing(kind))
        ]


def choose_parts(shards: Sequence[IndexHead], options: DatasetOptions) -> SampleParts:
    """Return the parts that samples of these shards need. Raises DataError where the shards leave that open."""
    if options.pairs:
        return SampleParts(*_pair_suffixes(shards), options.labels, needs_condition=bool(options.conditions))
    first, *stacked = (suffix.strip().lower().lstrip(".") for suffix in options.image.split(","))
    if (stacked and not first) or not all(stacked) or first in stacked or len(set(stacked)) < len(stacked):
        raise DataError(f"data.image_key={options.image}: name each part of an image once, as in red.png,nir.png")
    suffixes = _image_suffixes(shards, first, options.allow_corrupt)
    return SampleParts(suffixes, None, options.labels, tuple(stacked), bool(options.conditions))


def _image_suffixes(shards: Sequence[IndexHead], chosen: str, allow_corrupt: bool) -> frozenset[str]:
    """Return the suffixes that mark an image part."""
    if chosen:
        return frozenset([chosen.lower()])
    kinds: Counter[tuple[str, ...]] = Counter()
    for shard in shards:
        kinds.update({tuple(kind): count for kind, count in zip(shard["kinds"], shard["kind_counts"])})
    parts = {part for kind in kinds for part in kind}
    suffixes = frozenset(parts & SUFFIXES or parts & ARRAYS)
    ambiguous = [kind for kind in kinds if sum(part in suffixes for part in kind) > 1]
    if ambiguous and not allow_corrupt:
        names = ", ".join(sorted(part for part in ambiguous[0] if part in suffixes))
        raise DataError(f"samples have several image parts ({names}): set data.image_key to the one to train on")
    if kinds and not suffixes:
        seen = ", ".join(sorted({part for kind in kinds for part in kind})[:12])
        raise DataError(
            f"no image part in the shards, only {seen}: set data.image_key if one of these is an image, or, "
            "where keys have dots or images and labels are apart, let `distgan pack` make shards of them"
        )
    return suffixes


def _pair_suffixes(shards: Sequence[IndexHead]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the suffixes that mark the clean and the degraded part of a pair."""
    parts = {part for shard in shards for kind in shard["kinds"] for part in kind}
    clean, degraded = (
        frozenset(f"{side}.{suffix}" for suffix in SUFFIXES | ARRAYS) & parts for side in ("clean", "degraded")
    )
    if parts and not (clean and degraded):
        seen = ", ".join(sorted(parts)[:12])
        raise DataError(
            f"no pairs in the shards, only {seen}: a sample needs a clean and a degraded part, as KEY.clean.png and "
            "KEY.degraded.png (`distgan pack CLEAN OUT --degraded FOLDER` makes them); or set restore.degrade"
        )
    return clean, degraded
