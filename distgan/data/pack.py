"""Images in a folder, an archive, an array file or existing shards -> WebDataset shards of one image size.

The work is spread over processes, the order is not: the same source and options give byte-identical shards.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from PIL import Image
from tqdm import tqdm

from distgan.data import shard_index, tar
from distgan.data.decode import (
    FILTERS,
    MAX_PIXELS,
    BadImage,
    Picture,
    TooLarge,
    cropped,
    decode,
    fit,
    share_memory,
    to_levels,
)
from distgan.data.memory_budget import MemoryBudget
from distgan.data.pack_inputs import Entry, Listing, entry_bytes, list_source, pair, read_entry
from distgan.data.pixels import Pixels
from distgan.errors import ConfigError, DataError, MachineError
from distgan.storage.atomic import aside
from distgan.storage.byte_ranges import Source
from distgan.storage.home import user_path
from distgan.storage.urls import public
from distgan.version import __version__

SKIPPED = "skipped.jsonl"
UNLABELLED = "without a label"
OWN = re.compile(r"\d{6}\.tar(\.index)?|dataset\.json|skipped\.jsonl")  # what pack writes, and so may replace
CHUNK = 32  # images that travel to a process together
CHUNK_BYTES = 2**24  # there or back, or fewer of them that are so large
UNDER_WAY = 2**29  # bytes of images from compressed archives that wait for a process
SAVE = {
    "png": {"format": "PNG", "compress_level": 1},  # level 6 takes four times as long for a tenth of the bytes
    "webp": {"format": "WEBP", "lossless": True, "method": 0},
    "jpg": {"format": "JPEG", "subsampling": 0},
}


@dataclass(frozen=True)
class Options:
    """How each image is stored.

    Attributes:
        resolution: Side in pixels; 0 keeps each image's own size.
        crop: "center" takes the largest centred square, "stretch" the whole image.
        filter: Resampling filter: "lanczos", "area" or "bicubic".
        image: "png" or "webp" (both lossless), or "jpg".
        quality: Of jpg.
        background: Gray level under transparent pixels.
        max_pixels: Larger images are skipped.
        range: Stored values that become black and white; None: 0 and the largest value of the format.
    """

    resolution: int = 0
    crop: str = "center"
    filter: str = "lanczos"
    image: str = "png"
    quality: int = 95
    background: int = 255
    max_pixels: int = MAX_PIXELS
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("crop", ("center", "stretch")), ("filter", FILTERS), ("image", SAVE)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if not 0 <= self.resolution <= 8192:
            raise ConfigError(f"--resolution {self.resolution}: 1 to 8192 pixels, or 0 for each image's own")
        if not 1 <= self.max_pixels <= 178_000_000:
            raise ConfigError(f"--max-pixels {self.max_pixels}: 1 to 178,000,000, which is where Pillow stops")
        for name, low, high in (("quality", 1, 100), ("background", 0, 255)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"--{name} {getattr(self, name)}: {low} to {high}")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            low, high = self.range
            raise ConfigError(f"--range {low:g} {high:g}: the first value becomes black, the second, larger one white")


@dataclass
class Stored:
    """What became of one image: its bytes (and those of its degraded form), or the reason why it is left out."""

    data: bytes = b""
    degraded: bytes = b""
    size: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)  # width and height before it was fitted
    notes: tuple[str, ...] = ()
    skipped: str = ""
    values: tuple[float, float] | None = None  # lowest and highest stored, where these are not 8-bit levels
    cut_away: float = 0.0  # share of the image's area that is cropped


@dataclass
class Summary:
    """What `pack` did; the data set card holds the same."""

    samples: int = 0
    classes: list[str] | None = None
    class_counts: list[int] | None = None
    sizes: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first source it happened to
    notes: Counter = field(default_factory=Counter)
    lacking: str = ""  # why there are no labels
    origin: str = ""  # where the labels come from
    assumed: list[str] = field(default_factory=list)
    shards: list[dict] = field(default_factory=list)
    pixels: Pixels = field(default_factory=Pixels)
    range: tuple[float, float] | None = None  # of values that became black and white, where it was given


def pack(
    source: str,
    out: str,
    options: Options,
    *,
    shard_mb: float = 256,
    workers: int = 0,
    labels: bool = True,
    label: str = "",
    part: str = "",
    degraded: str = "",
    allow_corrupt: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Write the images of `source` as shards, with an index next to each and a card `dataset.json`, into `out`.

    What was left out, if anything, stands in `skipped.jsonl` next to the card: a line for each file, with its name and
    the reason. Nothing appears in `out` before all is written.

    Args:
        source: Folder, .zip, .tar (also .gz .bz2 .xz .zst), .npz, or shards as `find_shards` takes them.
        shard_mb: Largest size of a shard in MB (10^6 bytes).
        workers: Processes that decode and encode; 0 means one per core, 1 means none next to this one.
        labels: Whether there shall be labels.
        label: Where they are, such as "folders", "folders:2", "archives" or "json:KEY"; empty: a table
            (`dataset.json`), else `cls` parts, else folders.
        part: Suffix of the images, such as "image.png"; empty: told from their names and first bytes.
        degraded: A second source, with a degraded form of each image under the same name; samples become pairs.
        allow_corrupt: Whether the good samples of corrupt shards are taken.
        overwrite: Replace what `out` holds.
    """
    target = Path(out).resolve()  # a link stays a link, to what lies there then
    _take_up(target)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{out} is a file: name a folder for the shards")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise ConfigError(f"{out} is not empty: choose another folder, or pass --overwrite to replace it")
    if target.exists() and (foreign := [path.name for path in target.iterdir() if not OWN.fullmatch(path.name)]):
        raise ConfigError(
            f"{out} holds {foreign[0]!r}, which `pack` did not write and would delete: choose another folder"
        )
    if around := [place for place in (source, degraded) if place and _holds(place, target)]:
        raise ConfigError(f"{out} is inside {around[0]}, whose images are to be packed: choose a folder next to it")
    if not 0.065536 <= shard_mb <= 1e9:
        raise ConfigError(f"--shard-mb {shard_mb:g}: 0.066 or more")
    if not 0 <= workers <= 1024:
        raise ConfigError(f"--workers {workers}: 1 to 1024, or 0 for one per core")
    if label and not labels:
        raise ConfigError(f"--label {label} and --no-labels: leave out one of them")
    listing = list_source(source, labels=labels, label=label, part=part, allow_corrupt=allow_corrupt)
    if degraded:
        listing = pair(listing, list_source(degraded, labels=False, allow_corrupt=allow_corrupt))
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
            advice = "".join(f". {line}" for line in summary.pixels.warnings(options.range))
            raise DataError(f"{source}: no usable image among {listing.total}{_tally(summary, '; ')}{advice}")
        _finish(folder, summary, source, options)
        _put_in_place(folder, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk of {target.parent} is full" if full else f"{target}: {error.strerror or error}"
        raise MachineError(f"{reason}; nothing was changed in {target}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return summary


def _holds(source: str, target: Path) -> bool:
    """Whether a folder of images, of which all inner folders are read, is around the target."""
    folder = user_path(source)
    return folder.resolve() in target.parents and not any(folder.glob("*.tar"))


def _write(listing: Listing, folder: Path, options: Options, shard_bytes: int, workers: int) -> Summary:
    """Encode all images and append them to shards."""
    summary = Summary(classes=listing.classes, class_counts=[0] * len(listing.classes) if listing.classes else None)
    summary.lacking, summary.origin, summary.assumed = listing.lacking, listing.origin, listing.assumed
    summary.range = options.range
    shards = _ShardWriter(folder, shard_bytes)
    bar = tqdm(total=listing.total, unit=" images", disable=None, smoothing=0.05, desc="pack")
    chunks = _chunks(listing.entries)
    try:
        with _executor(workers) as pool, bar, open(folder / SKIPPED, "w") as skipped:
            for name, reason in listing.skipped:
                _skip(summary, skipped, name, reason)
            for chunk, stored in _in_order(pool, chunks, options, depth=4 * workers):
                for entry, picture in zip(chunk, stored):
                    bar.update()
                    summary.notes.update(picture.notes)
                    summary.pixels.add_values(picture.values, not picture.skipped)
                    reason = picture.skipped
                    if listing.classes and entry.label < 0:
                        reason = reason or UNLABELLED
                    if reason:
                        _skip(summary, skipped, entry.name, reason)
                        continue
                    parts = {options.image: picture.data}
                    if picture.degraded:
                        parts = {f"clean.{options.image}": picture.data, f"degraded.{options.image}": picture.degraded}
                    if listing.classes:
                        parts["cls"] = b"%d" % entry.label
                        summary.class_counts[entry.label] += 1
                    shards.add(f"{summary.samples:08d}", parts)
                    summary.samples += 1
                    summary.sizes[picture.size] += 1
                    summary.pixels.add_crop(picture.cut_away)
    except BrokenProcessPool:
        raise MachineError("a process of `pack` was killed (out of memory?): try fewer --workers") from None
    finally:
        shards.close()
    summary.shards = shards.done
    if not summary.skipped:
        (folder / SKIPPED).unlink()
    return summary


def _skip(summary: Summary, file: TextIO, name: str, reason: str) -> None:
    summary.skipped[reason] += 1
    summary.examples.setdefault(reason, name)
    file.write(json.dumps({"name": name, "reason": reason}) + "\n")


def _executor(workers: int) -> Executor:
    if workers == 1:
        return _Inline()
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=share_memory, initargs=(MemoryBudget(context=spawn),)
    )


class _Inline(Executor):
    """Runs each task at once, in this process."""

    def submit(self, function: Callable, /, *args: object) -> Future:
        future: Future = Future()
        future.set_result(function(*args))
        return future


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
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
    pool: Executor, chunks: Iterable[list[Entry]], options: Options, depth: int
) -> Iterator[tuple[list[Entry], list[Stored]]]:
    """Chunks with what became of them, in their order; at most `depth` are under way at a time."""
    waiting: deque[tuple[list[Entry], Future, int]] = deque()

    def first() -> Iterator[tuple[list[Entry], list[Stored]]]:
        entries, future, _ = waiting.popleft()
        while entries:
            stored = future.result()
            yield entries[: len(stored)], stored
            if entries := entries[len(stored) :]:
                future = pool.submit(_store_all, entries, options)

    try:
        for chunk in chunks:
            size = sum(entry_bytes(entry) for entry in chunk if entry.content is not None)
            while waiting and (len(waiting) >= depth or size + sum(held for _, _, held in waiting) > UNDER_WAY):
                yield from first()
            waiting.append((chunk, pool.submit(_store_all, chunk, options), size))
        while waiting:
            yield from first()
    finally:
        for _, future, _ in waiting:
            future.cancel()


def _store_all(entries: list[Entry], options: Options) -> list[Stored]:
    """What becomes of the first of these images: of all, or of as many as may travel back together."""
    found: list[Stored] = []
    size = 0
    for entry in entries:
        found.append(_store(entry, options))
        size += len(found[-1].data) + len(found[-1].degraded)
        if size >= CHUNK_BYTES:
            break
    return found


def _store(entry: Entry, options: Options) -> Stored:
    """One image, or both of a pair, of which one alone is of no use."""
    stored = _store_one(entry, options)
    if entry.degraded is None or stored.skipped:
        return stored
    other = _store_one(entry.degraded, options)
    if other.skipped:
        return Stored(skipped=f"degraded image: {other.skipped}")
    (width, height), (other_width, other_height) = stored.shape, other.shape
    if abs(width * other_height - other_width * height) > max(width, height, other_width, other_height):
        return Stored(skipped="the degraded image has other proportions")
    stored.degraded = other.data
    stored.notes += tuple(note for note in other.notes if note not in stored.notes)
    return stored


def _store_one(entry: Entry, options: Options) -> Stored:
    """Read, decode, fit and encode one image."""
    with contextlib.ExitStack() as hold:
        return _encoded(entry, options, hold)


def _encoded(entry: Entry, options: Options, hold: contextlib.ExitStack) -> Stored:
    try:
        content = read_entry(entry)
        if isinstance(content, bytes):
            picture = decode(
                content,
                max_pixels=options.max_pixels,
                background=options.background,
                value_range=options.range,
                measure=True,
                hold=hold,
            )
        elif content.shape[0] * content.shape[1] > options.max_pixels:
            raise TooLarge(options.max_pixels)
        else:
            picture = Picture(content if options.range is None else to_levels(content, options.range))
    except TooLarge:
        return Stored(skipped=f"more than --max-pixels {options.max_pixels}")
    except BadImage as reason:
        return Stored(skipped=str(reason), values=reason.values)
    except OSError as error:
        return Stored(skipped=f"unreadable ({error.strerror or error})")
    pixels, notes, shape, cut_away = picture.pixels, picture.notes, picture.pixels.shape[1::-1], 0.0
    if options.resolution:
        cut_away = cropped(*shape, options.crop)
        if min(pixels.shape[:2]) < options.resolution:
            notes += ("enlarged",)
        pixels = fit(pixels, options.resolution, options.filter, options.crop)
    out = io.BytesIO()
    settings = SAVE[options.image] | ({"quality": options.quality} if options.image == "jpg" else {})
    try:
        Image.fromarray(pixels).save(out, **settings)
    except (OSError, ValueError):  # WebP ends at 16383 pixels
        return Stored(skipped=f"too large for {options.image}")
    return Stored(
        out.getvalue(), size=pixels.shape[1::-1], shape=shape, notes=notes, values=picture.values, cut_away=cut_away
    )


class _ShardWriter:
    """Appends samples to 000000.tar, 000001.tar ... and starts the next before one grows over `shard_bytes`.

    The members are what `webdataset.ShardWriter(mtime=0)` would write; see `tar.header` for why it is not used.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.done: list[dict] = []
        self._folder, self._limit = folder, shard_bytes
        self._file, self._hash, self._size, self._samples = None, None, 0, 0

    def add(self, key: str, parts: dict[str, bytes]) -> None:
        blob = tar.sample(key, parts)
        if self._file and self._size + len(blob) + len(tar.END) > self._limit:
            self.close()
        if self._file is None:
            self._file = open(self._folder / f"{len(self.done):06d}.tar", "xb")  # noqa: SIM115
            self._hash, self._size, self._samples = hashlib.sha256(), 0, 0
        self._append(blob)
        self._samples += 1

    def close(self) -> None:
        """End the shard at hand."""
        if self._file is None:
            return
        self._append(tar.END)
        self._file.close()
        name, self._file = os.path.basename(self._file.name), None
        digest = self._hash.hexdigest()
        self.done.append({"name": name, "bytes": self._size, "samples": self._samples, "sha256": digest})

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)


def _finish(folder: Path, summary: Summary, source: str, options: Options) -> None:
    """The index next to each shard, and the card."""
    reader = Source()
    for shard in summary.shards:
        shard_index.load(str(folder / shard["name"]), reader, folder)
    how = asdict(options)
    if options.image != "jpg":
        del how["quality"]
    sizes = summary.sizes.most_common()
    card = {
        "made_by": f"distgan {__version__}",
        "samples": summary.samples,
        "classes": summary.classes,
        "class_counts": summary.class_counts,
        "labels_from": summary.origin or None,
        **how,
        "resolution": options.resolution or None,
        "pixel_sizes": None if options.resolution else [[f"{w}x{h}", n] for (w, h), n in sizes[:20]],
        "source": os.path.basename(os.path.normpath(public(source))),
        "skipped": dict(sorted(summary.skipped.items())),
        "changed": dict(sorted(summary.notes.items())),
        "values": summary.pixels.values,
        "cut_away": round(summary.pixels.cut_away, 4),
        "digest": hashlib.sha256("".join(shard["sha256"] for shard in summary.shards).encode()).hexdigest(),
        "shards": summary.shards,
    }
    (folder / "dataset.json").write_text(json.dumps(card, indent=1) + "\n")


def _replaced(target: Path) -> Path:
    """Where a set lies while another one takes its place."""
    return target.with_name(f".{target.name}.replaced")


def _take_up(target: Path) -> None:
    """Put back, or remove, the set that a killed `pack` was about to replace."""
    old = _replaced(target)
    if old.is_dir() and not old.is_symlink():
        if any(target.iterdir()) if target.exists() else False:
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def _put_in_place(folder: Path, target: Path) -> None:
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


def _tally(summary: Summary, before: str) -> str:
    """What was skipped, and why; nothing at all where nothing was."""
    text = ", ".join(
        f"{count:,} {reason}" + (f" (e.g. {summary.examples[reason]})" if reason in summary.examples else "")
        for reason, count in summary.skipped.most_common()
    )
    return before + text if text else ""


def report(summary: Summary, out: str, seconds: float) -> list[str]:
    """The summary as lines for a person."""
    total = sum(shard["bytes"] for shard in summary.shards)
    size = "x".join(map(str, summary.sizes.most_common(1)[0][0])) if len(summary.sizes) == 1 else "of their own sizes"
    lines = [f"{summary.samples:,} images {size} in {len(summary.shards)} shard(s), {total / 1e6:,.1f} MB: {out}"]
    if summary.classes:
        least, most = min(summary.class_counts), max(summary.class_counts)
        classes = f"{len(summary.classes)} classes with {least:,} to {most:,} images: {_names(summary.classes)}"
        lines.append(f"labels from {summary.origin}: {classes}; {summary.skipped[UNLABELLED]:,} images without a label")
    else:
        lines.append("no class labels" + (f": {summary.lacking}" if summary.lacking else ""))
    lines += [f"assumed: {text}" for text in summary.assumed]
    if summary.skipped:
        listed = os.path.join(out, SKIPPED)
        lines.append(f"skipped {sum(summary.skipped.values()):,}{_tally(summary, ': ')}; each of them: {listed}")
    if summary.notes:
        lines.append("changed: " + ", ".join(f"{count:,} {note}" for note, count in summary.notes.most_common()))
    lines += summary.pixels.facts(summary.range)
    lines += [f"warning: {line}" for line in summary.pixels.warnings(summary.range)]
    lines.append(f"{summary.samples / max(seconds, 1e-9):,.0f} images/s")
    return lines


def _names(classes: list[str]) -> str:
    return ", ".join(classes[:10]) + (" ..." if len(classes) > 10 else "")
