"""Restore any images by a trained image-to-image generator."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.data import image_grid
from distgan.data.decode import DecodeOptions, decode_array, decode_into
from distgan.data.image_format import ARRAYS, MAX_PIXELS, SUFFIXES, CorruptImage, TooLarge
from distgan.data.pack_entry import InputEntry, ListingOptions, read_entry
from distgan.data.pack_inputs import list_inputs
from distgan.data.resize import fit
from distgan.errors import ConfigError, DataError
from distgan.inference.generate import require_png, save_image
from distgan.inference.loading import load_generator, locate
from distgan.inference.picture_grid import bands_of, require_grid
from distgan.inference.request import parse_labels
from distgan.inference.trained_generator import TrainedGenerator
from distgan.storage.home import user_path
from distgan.transforms.image_values import display_pixels


class Row(NamedTuple):
    """An image's number in its source, the image before and after, and the clean one; stored values [H, W, C] each."""

    number: int
    degraded: np.ndarray
    restored: np.ndarray
    clean: np.ndarray | None  # of pairs


@dataclass(frozen=True)
class RestoreOptions:
    """The options of `distgan generate --input`.

    Attributes:
        kind: "png", "npy" or "grid".
        num: Number of images, the first ones of the source; None for all, or 64 of a grid.
        seed: Seed of the latents, for a generator that uses them.
        labels: Classes that the images take in turn, as for `generate`; empty for those of their class folders.
        columns: Columns of a grid; None for a square.

    Raises:
        ConfigError: A number is out of bounds, or there is no such kind.
    """

    kind: str = "png"
    num: int | None = None
    seed: int = 0
    labels: str = ""
    columns: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("num", self.num), ("columns", self.columns)):
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value}: at least 1")
        if self.kind not in ("png", "npy", "grid"):
            raise ConfigError(
                f"--as {self.kind}: restored images (--input) become png, npy or grid; `distgan pack` makes shards"
            )


def restore(path: str, source: str, out: str, options: RestoreOptions, rank: int = 0, world: int = 1) -> str:
    """Restore images of a source into a folder or a grid; returns a line that says where they are.

    Args:
        path: Run folder, checkpoint or exported generator.
        source: Anything that `pack` takes; of pairs, the degraded images are restored.
        rank, world: Each of several processes writes its share of the files, without communication.
    """
    target, is_grid = user_path(out), options.kind == "grid"
    if target.exists() and target.is_dir() == is_grid:
        raise ConfigError(f"--out {out} is {'a folder, a grid is one file' if is_grid else 'a file'}")
    if is_grid:
        require_grid(target)
    G = load_generator(locate(path), restores=True)
    if options.kind == "png":
        require_png(G.image, "npy")
    restoration = Restorer(G, options.seed, source, parse_labels(options.labels, G) if options.labels else [])
    if is_grid:
        return restoration.grid(options.num or 64, target, options.columns) if rank == 0 else ""
    return restoration.files(options.num, target, options.kind, rank, world)


class Restorer:
    """Restores the images of a source, and counts those that could not be read.

    Args:
        labels: Classes that the images take in turn; empty for those of their class folders.
    """

    def __init__(self, G: TrainedGenerator, seed: int, source: str, labels: list[int]) -> None:
        self._G, self._seed, self._source, self._labels = G, seed, source, labels
        data = G.origin["config"]["data"]  # how images were decoded and fitted in training
        self._decode = DecodeOptions(
            G.image,
            data["resize_filter"],
            data["crop"],
            data.get("max_pixels", MAX_PIXELS),
            data.get("background", 255),  # older configs lack it
        )
        self._num_resized = 0
        self._skipped: Counter[str] = Counter()

    def files(self, num: int | None, target: Path, kind: str, rank: int, world: int) -> str:
        """Write a PNG or NPY file for each image, in the same folders and with the same name if it has one."""
        target.mkdir(parents=True, exist_ok=True)
        done, total = 0, 0
        taken: set[str] = set()
        for number_of_chunk, chunk in enumerate(self._chunks(num)):
            names = {number: _file_name(entry.name, number, taken) for number, entry in chunk}
            total += len(chunk)
            if number_of_chunk % world != rank:
                continue
            for row in self._rows(chunk):
                path = target / f"{names[row.number]}.{kind}"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_image(path, row.restored, self._G.image)
                done += 1
        return self._summary(done, total, target, world)

    def grid(self, num: int, target: Path, columns: int | None) -> str:
        """Write degraded and restored images side by side, with the clean ones of pairs."""
        rows = [row for chunk in self._chunks(num) for row in self._rows(chunk)]
        summary = self._summary(len(rows), len(rows), target)
        image, bands = self._G.image, bands_of(self._G)
        seen = [display_pixels(np.stack([x for x in row[1:] if x is not None]), image, bands) for row in rows]
        joined = [np.concatenate(list(images), axis=1) for images in seen]
        target.parent.mkdir(parents=True, exist_ok=True)
        image_grid.save_png(target, image_grid.grid(joined, columns or math.ceil(math.sqrt(len(rows)))))
        return summary

    def _chunks(self, num: int | None) -> Iterator[list[tuple[int, InputEntry]]]:
        """Yield the numbers and entries of the images of one forward at a time."""
        num_classes = self._G.num_classes
        listing = list_inputs(self._source, ListingOptions(labels=num_classes > 0))
        if num_classes and not self._labels and not 0 < len(listing.classes or ()) <= num_classes:
            raise ConfigError(
                f"--input {self._source}: of which of the {num_classes} classes? Put the images into class folders "
                "as in training, or pass --labels"
            )
        entries = itertools.islice(enumerate(listing.entries), num)
        while chunk := list(itertools.islice(entries, self._G.chunk)):
            yield chunk

    def _rows(self, chunk: list[tuple[int, InputEntry]]) -> Iterator[Row]:
        """Yield the images that can be read, restored."""
        readable: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        classes: list[int] = []
        for number, entry in chunk:
            try:
                clean = self._read(entry) if entry.degraded else None
                readable[number] = (self._read(entry.degraded or entry), clean)
            except (CorruptImage, OSError) as reason:
                self._skipped[str(reason)] += 1
                continue
            classes.append(self._labels[number % len(self._labels)] if self._labels else entry.label)
            if classes[-1] in self._G.spec.unseen:
                raise ConfigError(
                    f"--input {self._source}: {entry.name} is of class {classes[-1]}, of which the training data had "
                    "no image; pass --labels, or leave such images out"
                )

        def read_degraded(numbers: list[int]) -> Tensor:
            return torch.from_numpy(np.stack([readable[number][0] for number in numbers]))

        labels = classes if self._G.num_classes else None
        restored = self._G.sampler(self._seed).pixels(list(readable), labels, read_degraded)
        for (number, (degraded, clean)), image in zip(readable.items(), restored):
            yield Row(number, degraded, image, clean)

    def _read(self, entry: InputEntry) -> np.ndarray:
        content = read_entry(entry)
        image, how = self._G.image, self._decode
        if isinstance(content, bytes):
            out = np.empty(image.shape, image.dtype)
            self._num_resized += decode_into(content, out, how)
            return out
        if content.shape[0] * content.shape[1] > how.max_pixels:
            raise TooLarge(how.max_pixels)
        self._num_resized += content.shape[:2] != image.shape[:2]
        pixels = decode_array(content, image, how.background).pixels
        return fit(pixels, image, how.filter, how.crop, background=how.background)

    def _summary(self, done: int, total: int, target: Path, world: int = 1) -> str:
        """Return a human-readable line; one of several processes counts its own images only.

        Raises:
            DataError: No image could be read.
        """
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._skipped.most_common())
        if not total or (not done and self._skipped):
            raise DataError(f"--input {self._source}: no usable image" + (f": {reasons}" if reasons else ""))
        line = f"{done} images restored" if world == 1 else f"{total} images, shared among {world} processes"
        resized = f", {self._num_resized} resized to {self._G.image.size}" if self._num_resized else ""
        return f"{line}{resized}: {target}" + (f"; skipped {reasons}" if reasons else "")


def _file_name(name: str, number: int, taken: set[str]) -> str:
    """Return the path of an image's file below the output folder, without a suffix.

    A name in an archive must not lead out of the folder.
    """
    stem, _, suffix = name.rpartition(".")
    parts = [part for part in stem.split("/") if part not in ("", ".", "..")]
    path = "/".join(parts) if parts and suffix.lower() in (*SUFFIXES, *ARRAYS) else f"{number:08d}"
    path = path if path not in taken else f"{path}.{suffix}"
    taken.add(path)
    return path
