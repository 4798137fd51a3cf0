"""Pack images of a folder, an archive, an array file or shards as WebDataset shards of one image size.

The work is spread over processes, the order is not: the same source and options give byte-identical shards.
"""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

import numpy as np
from tqdm import tqdm

from distgan.data import index_cache
from distgan.data.condition_table import PART, Statistics, to_bytes
from distgan.data.decode import share_memory
from distgan.data.encode import CHUNK_BYTES, PackOptions, StoredImage, encode_all
from distgan.data.memory_budget import MemoryBudget
from distgan.data.pack_entry import InputEntry, InputListing, ListingOptions, entry_bytes
from distgan.data.pack_inputs import ALL, list_inputs
from distgan.data.pack_summary import SKIPPED, UNLABELED, PackSummary, tally
from distgan.data.shard_writer import ShardWriter
from distgan.errors import ConfigError, DataError, MachineError
from distgan.storage.atomic import aside
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.home import user_path
from distgan.storage.urls import public
from distgan.version import __version__

OWN = re.compile(r"\d{6}\.tar(\.index)?|dataset\.json|skipped\.jsonl")  # what pack writes, and so may replace
CHUNK = 32  # images that travel to a process together, or fewer of CHUNK_BYTES
UNDER_WAY = 2**29  # bytes of images from compressed archives that wait for a process

P = ParamSpec("P")
T = TypeVar("T")


def pack(
    source: str,
    out: str,
    options: PackOptions,
    wanted: ListingOptions = ALL,
    *,
    shard_mb: float = 256,
    workers: int = 0,
    overwrite: bool = False,
) -> PackSummary:
    """Write the images of `source` as shards, with an index next to each and a card `dataset.json`, into `out`.

    What was left out, if anything, is in `skipped.jsonl` next to the card: a line for each file, with its name and
    the reason. Nothing appears in `out` before all is written.

    Args:
        source: Folder, .zip, .tar (also .gz .bz2 .xz .zst), .npz, or shards as `find_shards` takes them.
        options: How each image is stored.
        wanted: Which images and labels of the source are packed.
        shard_mb: Largest size of a shard in MB (10^6 bytes).
        workers: Processes that decode and encode; 0 means one per core, 1 means none next to this one.
        overwrite: Replace what `out` holds.

    Raises:
        ConfigError: An option that is out of bounds, or `out` where no shards may be written.
        DataError: A source without an image that can be used, or one that is not what it seems.
        MachineError: The disk is full or cannot be written, or a process was killed; `out` is as it was.
    """
    target = Path(out).resolve()  # a link stays a link, to what lies there then
    _recover(target)
    _require_free(target, out, overwrite)
    if around := [place for place in (source, wanted.degraded) if place and _holds(place, target)]:
        raise ConfigError(f"{out} is inside {around[0]}, whose images are to be packed: choose a folder next to it")
    if not 0.065536 <= shard_mb <= 1e9:
        raise ConfigError(f"--shard-mb {shard_mb:g}: 0.066 or more")
    if not 0 <= workers <= 1024:
        raise ConfigError(f"--workers {workers}: 1 to 1024, or 0 for one per core")
    listing = list_inputs(source, replace(wanted, channels=options.channels))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = aside(target)
        folder.mkdir()
    except OSError as error:
        raise MachineError(f"{target.parent}: {error.strerror}") from None
    try:
        workers = workers or min(os.cpu_count() or 1, 1 + listing.total // 1000)  # each takes a moment to start
        summary = _write(listing, folder, options, int(shard_mb * 1e6), workers)
        if summary.samples == 0:
            advice = "".join(f". {line}" for line in summary.pixels.warnings(options.range, options.dtype))
            raise DataError(f"{source}: no usable image among {listing.total}{tally(summary, '; ')}{advice}")
        _finish(folder, summary, source, options)
        _put_in_place(folder, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk of {target.parent} is full" if full else f"{target}: {error.strerror or error}"
        raise MachineError(f"{reason}; nothing was changed in {target}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return summary


def _require_free(target: Path, out: str, overwrite: bool) -> None:
    """Refuse a file, a folder that holds something unless that may be replaced, and one with other files than ours."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"{out} is a file: name a folder for the shards")
    names = [path.name for path in target.iterdir()]
    if names and not overwrite:
        raise ConfigError(f"{out} is not empty: choose another folder, or pass --overwrite to replace it")
    if foreign := [name for name in names if not OWN.fullmatch(name)]:
        raise ConfigError(
            f"{out} holds {foreign[0]!r}, which `pack` did not write and would delete: choose another folder"
        )


def _holds(source: str, target: Path) -> bool:
    """Return whether a folder of images, of which all inner folders are read, is around the target."""
    folder = user_path(source)
    return folder.resolve() in target.parents and not any(folder.glob("*.tar"))


def _write(listing: InputListing, folder: Path, options: PackOptions, shard_bytes: int, workers: int) -> PackSummary:
    """Encode all images and append them to shards."""
    summary = PackSummary(
        classes=listing.classes,
        class_counts=[0] * len(listing.classes or ()),
        lacking=listing.lacking,
        origin=listing.origin,
        assumed=listing.assumed,
        options=options,
    )
    statistics = Statistics(listing.conditions)
    shards = ShardWriter(folder, shard_bytes)
    bar = tqdm(total=listing.total, unit=" images", disable=None, smoothing=0.05, desc="pack")
    chunks = _chunks(listing.entries)
    try:
        with _executor(workers) as pool, bar, open(folder / SKIPPED, "w") as skipped:
            for name, reason in listing.skipped:
                _skip(summary, skipped, name, reason)
            for chunk, stored in _in_order(pool, chunks, options, depth=4 * workers):
                for entry, result in zip(chunk, stored):
                    bar.update()
                    summary.notes.update(result.notes)
                    summary.pixels.add_values(result.values, not result.skipped)
                    summary.pixels.add_sampled(result.sampled)
                    reason = result.skipped
                    if listing.classes and entry.label < 0:
                        reason = reason or UNLABELED
                    if reason:
                        _skip(summary, skipped, entry.name, reason)
                        continue
                    parts = {options.suffix: result.data}
                    if result.degraded:
                        parts = {f"clean.{options.suffix}": result.data, f"degraded.{options.suffix}": result.degraded}
                    if listing.classes:
                        parts["cls"] = b"%d" % entry.label
                        summary.class_counts[entry.label] += 1
                    if listing.conditions:
                        parts[PART] = to_bytes(entry.condition)
                        statistics.add(np.array(entry.condition, np.float32))
                    shards.add(f"{summary.samples:08d}", parts)
                    summary.samples += 1
                    summary.sizes[result.size] += 1
                    summary.pixels.add_crop(result.cut_away)
                    summary.sum_aspect += result.shape[0] / result.shape[1]
    except BrokenProcessPool:
        raise MachineError("a process of `pack` was killed (out of memory?): try fewer --workers") from None
    finally:
        shards.close()
    summary.shards = shards.done
    summary.conditions = statistics.fields()
    if not summary.skipped:
        (folder / SKIPPED).unlink()
    return summary


def _skip(summary: PackSummary, file: TextIO, name: str, reason: str) -> None:
    """Count an image that is left out, and list it in `skipped.jsonl`."""
    summary.skipped[reason] += 1
    summary.examples.setdefault(reason, name)
    file.write(json.dumps({"name": name, "reason": reason}) + "\n")


def _executor(workers: int) -> Executor:
    """Start the processes that encode, which share the memory for decoding; with one worker, there are none."""
    if workers == 1:
        return _Inline()
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=share_memory, initargs=(MemoryBudget(context=spawn),)
    )


class _Inline(Executor):
    """Runs each task at once, in this process."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Call the function now."""
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _chunks(entries: Iterable[InputEntry]) -> Iterator[list[InputEntry]]:
    """Cut the images into chunks that may travel to a process together."""
    chunk: list[InputEntry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        with contextlib.suppress(OSError):  # who reads it tells
            size += entry_bytes(entry)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_order(
    pool: Executor, chunks: Iterable[list[InputEntry]], options: PackOptions, depth: int
) -> Iterator[tuple[list[InputEntry], list[StoredImage]]]:
    """Yield chunks with what became of them, in their order; at most `depth` are under way at a time."""
    waiting: deque[tuple[list[InputEntry], Future[list[StoredImage]], int]] = deque()

    def results_of_first() -> Iterator[tuple[list[InputEntry], list[StoredImage]]]:
        entries, future, _ = waiting.popleft()
        while entries:
            stored = future.result()
            yield entries[: len(stored)], stored
            if entries := entries[len(stored) :]:
                future = pool.submit(encode_all, entries, options)

    try:
        for chunk in chunks:
            size = sum(entry_bytes(entry) for entry in chunk if entry.content is not None)
            while waiting and (len(waiting) >= depth or size + sum(held for _, _, held in waiting) > UNDER_WAY):
                yield from results_of_first()
            waiting.append((chunk, pool.submit(encode_all, chunk, options), size))
        while waiting:
            yield from results_of_first()
    finally:
        for _, future, _ in waiting:
            future.cancel()


def _finish(folder: Path, summary: PackSummary, source: str, options: PackOptions) -> None:
    """Write the index next to each shard, and the card."""
    reader = ByteRangeReader()
    for shard in summary.shards:
        index_cache.load(str(folder / shard["name"]), reader, folder)
    how = asdict(options)
    if options.image != "jpg":
        del how["quality"]
    for name in ("channels", "dtype", "alpha"):
        del how[name]
    sizes = summary.sizes.most_common()
    card = {
        "made_by": f"distgan {__version__}",
        "samples": summary.samples,
        "classes": summary.classes,
        "class_counts": summary.class_counts if summary.classes else None,
        "labels_from": summary.origin or None,
        **({"conditions": [asdict(one) for one in summary.conditions]} if summary.conditions else {}),
        **how,
        "resolution": options.height if options.height and options.height == options.width else None,
        "pixel_sizes": None if options.resolution else [[f"{w}x{h}", n] for (w, h), n in sizes[:20]],
        "source": os.path.basename(os.path.normpath(public(source))),
        "skipped": dict(sorted(summary.skipped.items())),
        "changed": dict(sorted(summary.notes.items())),
        "values": summary.pixels.values,
        "cut_away": round(summary.pixels.cut_away, 4),
        **_kind(summary, options),
        "digest": hashlib.sha256("".join(shard["sha256"] for shard in summary.shards).encode()).hexdigest(),
        "shards": summary.shards,
    }
    (folder / "dataset.json").write_text(json.dumps(card, indent=1) + "\n")


def _kind(summary: PackSummary, options: PackOptions) -> dict[str, object]:
    """Return what a card says of images that are not square ones of three channels of 8 bits, or were stretched."""
    facts: dict[str, object] = {}
    if not options.is_plain:
        facts = {
            "image": options.suffix,
            "channels": options.channels,
            "dtype": options.dtype,
            "alpha": options.alpha,
            "height": options.height or None,
            "width": options.width or None,
        }
    if summary.pixels.quantiles is not None:
        facts |= {"quantiles": list(summary.pixels.quantiles)}
    if summary.is_stretched:
        facts |= {"aspect": round(summary.aspect, 4)}
    return facts


def _replaced(target: Path) -> Path:
    """Return where a set is kept while another one takes its place."""
    return target.with_name(f".{target.name}.replaced")


def _recover(target: Path) -> None:
    """Put back, or remove, the set that a killed `pack` was about to replace."""
    old = _replaced(target)
    if old.is_dir() and not old.is_symlink():
        if any(target.iterdir()) if target.exists() else False:
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def _put_in_place(folder: Path, target: Path) -> None:
    """Let the new set take the place of the old one, which comes back where that fails."""
    old = _replaced(target)
    if target.exists():
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
