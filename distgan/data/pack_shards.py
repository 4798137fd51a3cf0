"""List the samples of WebDataset shards, to be packed again."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from distgan.data import dataset_card, index_cache, shard_index
from distgan.data.condition_table import CLASS, PART, split_column
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.dataset_conditions import ALL
from distgan.data.image_format import ARRAYS, SUFFIXES
from distgan.data.pack_entry import InputEntry, InputListing, ListingOptions
from distgan.errors import DataError
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.home import default_cache_dir
from distgan.storage.urls import is_local, local_path, public


def are_regular(urls: Sequence[str], wanted: ListingOptions) -> bool:
    """Return whether the index says all of these shards: parts are neighbors, keys lack dots, classes are numbers."""
    source = ByteRangeReader()
    pictures = {wanted.part} if wanted.part else SUFFIXES | ARRAYS
    for url in urls:
        try:
            summary = index_cache.summary(url, source, default_cache_dir() / "index")
        except DataError:  # of too many kinds of samples
            return False
        parts = {part for kind in summary["kinds"] for part in kind}
        dotted = {part for part in parts - pictures if "." in part and part.rpartition(".")[2] in SUFFIXES | {"cls"}}
        if {part for part in dotted if part.partition(".")[0] not in ("clean", "degraded")}:
            return False
        if not dotted and not parts & pictures and summary["samples"]:
            return False
        if any(label == shard_index.BAD_LABEL for _, label, _ in shard_index.label_counts(summary)):
            return False
        if any(defect.startswith("sample ") for defect in summary["defects"]):
            return False
    return True


def list_shards(urls: Sequence[str], wanted: ListingOptions) -> InputListing:
    """List the samples of shards by their index, as training reads them."""
    source = ByteRangeReader()
    parts = {part for kind in index_cache.load(urls[0], source, default_cache_dir() / "index").kinds for part in kind}
    pairs = not wanted.part and not parts & SUFFIXES and any(part.startswith("clean.") for part in parts)

    names = tuple(split_column(column)[0] for column in wanted.conditions if column != CLASS)
    if not names and PART in parts and "conditions" in dataset_card.read(urls[0]):
        names = (ALL,)  # they stay what they are
    if names and wanted.table:
        raise DataError(f"--table {wanted.table}: the shards hold their own conditions")
    options = DatasetOptions(image=wanted.part, pairs=pairs, allow_corrupt=wanted.allow_corrupt, conditions=names)
    data = Dataset(urls, source, options)
    labeled = wanted.labels and data.has_labels
    if labeled:
        data = Dataset(urls, source, replace(options, labels=True))

    def entries() -> Iterator[InputEntry]:
        for number, url in enumerate(urls):
            located = data.located(number)
            for i, label in enumerate(located.label.tolist()):
                name = f"{os.path.basename(public(url))}[{i}]"
                one, *degraded = (
                    part(name, label, url, offset[i], length[i]) for ((offset, length),) in located.images
                )
                if data.conditions is not None:
                    one = replace(one, condition=tuple(data.condition_at(number, located, i).tolist()))
                yield replace(one, degraded=degraded[0]) if degraded else one

    def part(name: str, label: int, url: str, start: int, length: int) -> InputEntry:
        span = (int(start), int(length))
        if is_local(url):
            return InputEntry(name, label, local_path(url), span=span)
        return InputEntry(name, label, content=source.cached(url, *span))

    class_names = [str(i) for i in range(data.num_classes)]
    if len(data.class_names) >= len(class_names):
        class_names = data.class_names
    fields = [] if data.conditions is None else list(data.conditions.fields)
    lacking = "some samples have no cls part" if wanted.labels and not labeled and data.has_some_labels else ""
    if not labeled:
        return InputListing(entries(), data.num_samples, lacking=lacking, conditions=fields)
    return InputListing(entries(), data.num_samples, class_names, origin="the cls parts", conditions=fields)
