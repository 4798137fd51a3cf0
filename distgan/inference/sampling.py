"""Draw a generator's images, each a function of its seed, its number and its label alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distgan.distributed.device_copy import copy_to_device
from distgan.image_spec import ImageSpec
from distgan.models.networks import run_generator
from distgan.rng import host_rng
from distgan.transforms.image_values import to_display, to_networks, to_pixels

CHUNK = 64  # images of one forward; always whole, so that an image does not depend on which others are asked for

Labels = Sequence[int] | np.ndarray | None  # of images: classes [n], or vectors of conditions [n, V]
ReadDegraded = Callable[[list[int]], Tensor]  # numbers -> degraded images, stored values [n, H, W, C], on any device


def chunk_size(image: ImageSpec) -> int:
    """Return the images of one forward: CHUNK, fewer above 256 pixels, where that many take much memory."""
    return max(1, min(CHUNK, CHUNK * 256**2 // (image.height * image.width)))


def latents(seed: int, numbers: Sequence[int] | np.ndarray, z_dim: int) -> Tensor:
    """Return the latents of some numbers, float32 [len(numbers), z_dim], each a function of (seed, number)."""
    return torch.from_numpy(host_rng.normal(host_rng.key(seed, "sample"), np.asarray(numbers, np.int64), z_dim))


@dataclass(frozen=True)
class Sampler:
    """Draws the images of one generator and one seed.

    Image i is made of latent i of `seed`, in row i % chunk of a forward of the chunk's latents: its bits depend on
    `seed`, i, its label and `chunk`, and not on which other images are asked for. G is in evaluation mode meanwhile.
    """

    G: nn.Module
    z_dim: int
    seed: int
    image: ImageSpec

    @property
    def chunk(self) -> int:
        """Return the images of one forward."""
        return chunk_size(self.image)

    def pixels(
        self, numbers: Sequence[int], labels: Labels = None, degraded: ReadDegraded | None = None
    ) -> Iterator[np.ndarray]:
        """Yield the images of some numbers, stored values [H, W, C] each, copied once a chunk. See `images`."""
        for part in self.images(numbers, labels, degraded):
            yield from to_pixels(part, self.image)

    def display(
        self,
        numbers: Sequence[int],
        labels: Labels = None,
        degraded: ReadDegraded | None = None,
        bands: Sequence[int] = (),
    ) -> Iterator[Tensor]:
        """Yield what people see of the images of some numbers, a chunk at a time: uint8 [B, 3, H, W] on G's device."""
        for part in self.images(numbers, labels, degraded):
            yield to_display(part, self.image, bands)

    @torch.no_grad()
    def images(
        self, numbers: Sequence[int], labels: Labels = None, degraded: ReadDegraded | None = None
    ) -> Iterator[Tensor]:
        """Yield the images of some numbers, at most `chunk` at a time; [B, C, H, W] in -1..1, on G's device.

        The host waits for nothing.

        Args:
            labels: A class for each image, for a G with classes; or vectors [n, V], for one with conditions.
            degraded: Reads the images that an image-to-image G restores.
        """
        device = next(self.G.parameters()).device
        was_training = self.G.training
        wanted = np.asarray(numbers, np.int64)
        given = None if labels is None else np.asarray(labels)
        given = given if given is None or given.ndim == 2 else given.astype(np.int64)
        cuts = np.flatnonzero((np.diff(wanted // self.chunk) != 0) | (np.diff(wanted) <= 0)) + 1
        self.G.eval()
        try:
            for part in np.split(np.arange(len(wanted)), cuts) if len(wanted) else ():
                first = wanted[part[0]] // self.chunk * self.chunk
                rows = wanted[part] - first
                z = copy_to_device(latents(self.seed, np.arange(first, first + self.chunk), self.z_dim), device)
                chunk_labels = condition = None
                if given is not None:
                    filled = np.repeat(given[part[:1]], self.chunk, axis=0)  # rows that are not wanted may have any
                    filled[rows] = given[part]
                    chunk_labels = copy_to_device(filled, device)
                rows_on_device = copy_to_device(rows, device)
                if degraded is not None:
                    read = to_networks(copy_to_device(degraded(wanted[part].tolist()), device), self.image)
                    condition = read[:1].repeat(self.chunk, 1, 1, 1)
                    condition[rows_on_device] = read
                images = run_generator(self.G, z, condition, chunk_labels)
                yield images if len(rows) == self.chunk else images[rows_on_device]
        finally:
            self.G.train(was_training)
