"""Sets of numbered images to measure: of a generator, of shards, or of a folder."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distgan.data.dataset import Dataset
from distgan.data.decode import RGB, DecodeOptions, decode, decode_array, decode_into
from distgan.data.image_format import CorruptImage
from distgan.data.pack_entry import InputEntry, InputListing, all_entries, place, read_entry
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec
from distgan.inference import sampling
from distgan.inference.selection import parse_classes
from distgan.metrics.extractors import PART_PIXELS
from distgan.rng import host_rng
from distgan.transforms.image_values import display_pixels

CHUNKS = {
    "cpu": 64,
    "cuda": 256,
}  # consecutive images that one rank measures at a time, on each kind of device; at most


def chunk_size(device: torch.device, image: ImageSpec) -> int:
    """Return the images that a rank measures at a time: whole forwards of G, fewer where they have many pixels."""
    forward = sampling.chunk_size(image)
    fitting = min(CHUNKS[device.type], PART_PIXELS // (image.height * image.width))
    return max(forward, fitting // forward * forward)


PLAIN = DecodeOptions(RGB)


class Images(NamedTuple):
    """A batch of images.

    Attributes:
        numbers: int64 [B], on the host.
        pixels: What people see of them, uint8 [B, 3, H, W]; on the device of the generator that made them, else on the
            host.
        labels: Class numbers, int64 [B], on the host; or None.
    """

    numbers: np.ndarray
    pixels: Tensor
    labels: np.ndarray | None


class ImageSet(Protocol):
    """A set of `num` images of one size.

    `read` leaves out corrupt ones; `reads_files` says whether it waits for a disk.
    """

    num: int
    image: ImageSpec
    reads_files: bool

    def read(self, numbers: np.ndarray) -> Images:
        """Read images by their numbers."""
        ...


class GeneratedImages:
    """Images of a generator. Image i is a function of (seed, i), the same as in `distgan generate --seed`."""

    reads_files = False

    def __init__(
        self,
        G: nn.Module,
        z_dim: int,
        image: ImageSpec,
        *,
        seed: int,
        num: int,
        labels: np.ndarray | None,
        bands: Sequence[int] = (),
    ) -> None:
        self.num, self.image, self.labels = num, image, labels
        self._sampler, self._bands = sampling.Sampler(G, z_dim, seed, image), bands

    def read(self, numbers: np.ndarray) -> Images:
        """Read images by their numbers."""
        labels = None if self.labels is None else self.labels[numbers]
        parts = list(self._sampler.display(numbers.tolist(), labels, bands=self._bands))
        # Vectors of conditions are functions of the numbers, so nobody needs to gather them.
        return Images(numbers, torch.cat(parts), labels if labels is None or labels.ndim == 1 else None)


class ShardImages:
    """The images of shards, at one size; as in training, without flips and augmentation."""

    reads_files = True

    def __init__(self, dataset: Dataset, options: DecodeOptions, threads: int, bands: Sequence[int] = ()) -> None:
        self.num, self.image, self.dataset = dataset.num_samples, options.image, dataset
        self._options, self._pool, self._bands = options, ThreadPoolExecutor(threads), bands
        self.origin = {
            "shards": dataset.fingerprint,
            "images": dataset.num_samples,
            "resolution": options.image.resolution,
            "labels": dataset.num_classes,
            "max_pixels": options.max_pixels,
            "filter": options.filter,
            "crop": options.crop,
        }
        if options.background != 255:
            self.origin["background"] = options.background
        if options.transforms:
            self.origin["transforms"] = [step.identity for step in options.transforms]
        if not options.image.is_rgb8:
            self.origin["values"] = [str(x) for x in astuple(options.image)[2:]]

    def read(self, numbers: np.ndarray) -> Images:
        """Read images by their numbers."""
        pixels = np.empty((len(numbers), *self.image.shape), self.image.dtype)
        results = list(self._pool.map(self._read_into, numbers.tolist(), pixels))
        labels = np.array([label for label, _ in results], np.int64)
        good = np.array([is_good for _, is_good in results], bool)
        seen = _tensor(display_pixels(pixels[good], self.image, self._bands))
        return Images(numbers[good], seen, labels[good] if self.dataset.labels else None)

    def _read_into(self, number: int, out: np.ndarray) -> tuple[int, bool]:
        """Decode an image into `out`; returns its label, and whether it could be decoded."""
        shard, place = (int(x) for x in self.dataset.shard_of(np.asarray(number, np.int64)))
        located = self.dataset.located(shard)
        try:
            decode_into(self.dataset.fetch(shard, located.images[0], place), out, self._options)
        except CorruptImage:
            return -1, False
        return int(located.label[place]), True


class ListedImages:
    """Images of a folder, archive or array file, all of one size; they are not cropped or resized.

    Args:
        how: Channels and values that they are decoded to; what it says of sizes is not used.
        bands: Channels to show, see `image_values.to_display`.
    """

    reads_files = True

    def __init__(
        self, listing: InputListing, threads: int, how: DecodeOptions = PLAIN, bands: Sequence[int] = ()
    ) -> None:
        self._how, self._bands = how, bands
        self._entries = all_entries(listing)
        self.num, self._has_labels = len(self._entries), listing.classes is not None
        if self.num == 0:
            raise DataError("no images there")
        self._classes: np.ndarray | None = None
        self._pool = ThreadPoolExecutor(threads)
        height, width, _ = self._decode(self._entries[0]).shape
        self.image = replace(how.image, height=height, width=width)

    def renumber(self, classes: Sequence[int]) -> None:
        """Map class i to `classes[i]` from now on; without any, the images have no classes."""
        self._has_labels = len(classes) > 0
        self._classes = np.array(classes, np.int64)

    def read(self, numbers: np.ndarray) -> Images:
        """Read images by their numbers."""
        entries = [self._entries[i] for i in numbers]
        pixels = list(self._pool.map(self._decode, entries))
        for entry, image in zip(entries, pixels):
            if image.shape != self.image.shape:
                raise DataError(
                    f"{place(entry)} has {image.shape[1]}x{image.shape[0]} pixels, the first image {self.image.size}: "
                    "they must be of one size; `distgan pack --resolution` makes them so"
                )
        labels = np.array([entry.label for entry in entries]) if self._has_labels else None
        if labels is not None and self._classes is not None:
            labels = self._classes[labels]
        return Images(numbers, _tensor(display_pixels(np.stack(pixels), self.image, self._bands)), labels)

    def _decode(self, entry: InputEntry) -> np.ndarray:
        try:
            data = read_entry(entry)
            if isinstance(data, np.ndarray):
                return decode_array(data, self._how.image, self._how.background).pixels
            return decode(
                data,
                image=self._how.image,
                max_pixels=self._how.max_pixels,
                background=self._how.background,
            ).pixels
        except (CorruptImage, OSError) as error:
            if str(error).startswith("float pixels"):
                raise DataError(
                    f"{place(entry)}: {error}: set data.dtype=float32 and data.range=[LOW,HIGH], the values that are "
                    "black and white"
                ) from None
            raise DataError(
                f"{place(entry)}: {error}: no image is skipped in an evaluation. Remove it, or evaluate shards: "
                "`distgan pack` leaves such images out"
            ) from None


def _tensor(pixels: np.ndarray) -> Tensor:
    """Permute uint8 [B, H, W, 3] to [B, 3, H, W]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def shares(images: ImageSet, rank: int, world: int, chunk: int) -> Iterator[Images | None]:
    """Yield one rank's images, a chunk at a time; None in a round in which only other ranks have images.

    Every rank has the same number of rounds, so that ranks may communicate in each. The next chunks of files are read
    ahead.
    """
    chunks = [np.arange(start, min(start + chunk, images.num)) for start in range(0, images.num, chunk)]
    rounds = -(-len(chunks) // world)
    own_chunks = chunks[rank::world]
    yield from _read_ahead(images, own_chunks) if images.reads_files else map(images.read, own_chunks)
    yield from [None] * (rounds - len(own_chunks))


def _read_ahead(images: ImageSet, chunks: Sequence[np.ndarray]) -> Iterator[Images]:
    """Yield the images of each chunk, while a thread reads the next ones."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(images.read, chunk) for chunk in chunks[:2]]
        for i in range(len(chunks)):
            batch = waiting.pop(0).result()
            if i + 2 < len(chunks):
                waiting.append(pool.submit(images.read, chunks[i + 2]))
            yield batch


def draw_labels(
    policy: str, seed: int, num: int, class_counts: Sequence[int], class_names: Sequence[str] = ()
) -> np.ndarray | None:
    """Draw classes of generated images, the i-th a function of (seed, i); int64 [num], None without classes.

    Args:
        policy: "empirical" draws classes with their frequency in the data set, "uniform" all that have images with the
            same frequency; classes such as "0,3,7-9" or "cat,dog" are taken in turn.
        class_counts: Number of images of each class in the data set.
        class_names: Names of classes 0, 1 ..., where they are known.

    Raises:
        ConfigError: A class does not exist, or has no image, so that the generator never saw it.
    """
    num_classes = len(class_counts)
    if num_classes == 0:
        if policy not in ("empirical", "uniform"):
            raise ConfigError(f"eval.labels={policy}: this generator was trained without classes")
        return None
    bits = host_rng.bits(host_rng.key(seed, "labels of an evaluation"), np.arange(num))
    if policy == "uniform":
        seen = np.flatnonzero(class_counts)
        return seen[(bits % np.uint64(len(seen))).astype(np.int64)]
    if policy == "empirical":
        ends = np.cumsum(np.asarray(class_counts, np.int64))
        return np.searchsorted(ends, (bits % np.uint64(ends[-1])).astype(np.int64), side="right")
    usage = "write empirical, uniform, or class numbers or names as 0,3,7-9 or cat,dog"
    asked = parse_classes(policy, num_classes, f"eval.labels={policy}", usage, class_names)
    if unseen := [label for label in asked if not class_counts[label]]:
        raise ConfigError(f"eval.labels={policy}: class {unseen[0]} has no image in the training data; leave it out")
    return np.resize(np.array(asked, np.int64), num)
