"""A trained generator, apart from the trainer: what it is, and how to draw images from it."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from distgan.distributed.device_copy import copy_to_device
from distgan.image_spec import MAX_CHANNELS, DType, ImageSpec
from distgan.inference import sampling
from distgan.storage.saved_state import Aspect, Classes
from distgan.storage.untrusted import Between, Positive

Side = Annotated[int, Between(8, 1024)]
Labels = Tensor | Sequence[int] | int | None  # a class for each image, one for all, or the classes in turn


@dataclass(frozen=True)
class Spec:
    """The description of a generator, without its weights and its training; an exported one must keep the bounds.

    Attributes:
        family: A key of `distgan.models.MODELS`.
        resolution: Size of the images in pixels, a side or [height, width].
        z_dim: Length of a latent.
        num_classes: 0 for a generator without classes.
        settings: The family's own settings, `model.G` of a config.
        revision: Revision of the family's networks, see `distgan.models.Family`.
        unseen: Classes without an image in the training data.
        aspect: Mean of width over height before the training data was stretched to its size; 0: it was not.
        channels, dtype, range, alpha: Of the images, see `ImageSpec`; an empty range: all levels of the dtype.
    """

    family: str
    resolution: Side | list[Side]
    z_dim: Annotated[int, Between(1, 2**20)]
    num_classes: Classes
    settings: dict[str, object] = field(default_factory=dict)
    revision: Positive = 1
    unseen: list[Classes] = field(default_factory=list)
    channels: Annotated[int, Between(1, MAX_CHANNELS)] = 3
    dtype: DType = "uint8"
    range: list[float] = field(default_factory=list)
    alpha: bool = False
    aspect: Aspect = 0.0

    @property
    def image(self) -> ImageSpec:
        """Return the spec of the images. Raises ValueError where there are no such images."""
        height, width = self.resolution if isinstance(self.resolution, list) else [self.resolution] * 2
        low, high = self.range or (0.0, 0.0)
        return ImageSpec(height, width, self.channels, self.dtype, low, high, self.alpha)


class TrainedGenerator:
    """A trained generator, ready to draw from; `distgan.load_generator` returns it.

        G = load_generator("runs/faces")
        images = G(16, seed=1)                    # float32 [16, C, H, W] in -1..1: images 0..15 of seed 1
        images = G(z, labels)                     # of your own latents: standard normal [B, z_dim]
        images = list(G.pictures(range(16)))      # [H, W, C] each, as `distgan generate` writes them

    An image-to-image generator is loaded by `load_generator(path, restores=True)`:

        images = G.restore(degraded)              # both float32 [B, C, H, W] in -1..1

    Attributes:
        net: The average generator in evaluation mode, its weights frozen: net(z, labels) -> [B, C, H, W], or
            net(pictures, z, labels) where it restores images.
        restores: Whether it is an image-to-image generator.
        image: Channels, size and values of the images.
        z_dim, num_classes: The length of a latent; 0 for a generator without classes.
        seen: The classes with images in the training data; labels of other classes are refused.
        spec: These, the family and its settings.
        origin: Where it comes from: run, checkpoint, its hash, images seen, and the config of the training.
        chunk: Images of one forward.
    """

    def __init__(self, net: nn.Module, spec: Spec, origin: dict[str, Any]) -> None:
        self.net, self.spec, self.origin = net, spec, origin
        self.restores = "pictures" in inspect.signature(net.forward).parameters
        self.image, self.z_dim, self.num_classes = spec.image, spec.z_dim, spec.num_classes
        self.seen = sorted(set(range(spec.num_classes)) - set(spec.unseen))
        self.chunk = sampling.chunk_size(spec.image)

    @property
    def resolution(self) -> int | list[int]:
        """Return the size of the images: a side, or [height, width]."""
        return self.image.resolution

    @property
    def device(self) -> torch.device:
        """Return the device of the weights, on which images are made."""
        return next(self.net.parameters()).device

    @property
    def half_life(self) -> str:
        """Return the half-life of the average in images, as text; of a schedule the first and the last one."""
        half_life = self.origin["config"]["ema"]["half_life"]
        values = half_life if isinstance(half_life, list) else [half_life]  # older checkpoints have a number
        return " to ".join(f"{value:,.0f}" for value in values)

    @torch.no_grad()
    def __call__(self, z: Tensor | int, labels: Labels = None, *, seed: int = 0) -> Tensor:
        """Return images [B, C, H, W], float32, on the generator's device; -1 and 1 are the ends of
        the range of values, black and white.

        Args:
            z: Latents [B, z_dim]; or a number B, which means latents 0 to B - 1 of `seed`.
            labels: A class for each image, or one for all; None: image i is of class `seen[i % len(seen)]`.
            seed: Seed of the latents, if z is a number. Image i is a function of (seed, i) and its label: its bits do
                not depend on B.

        Raises:
            ValueError: z or labels do not fit the generator, or it restores images.
        """
        if self.restores:
            raise ValueError("this generator restores images: call restore(pictures)")
        if isinstance(z, int):
            if z < 1:
                raise ValueError(f"{z} images: ask for 1 or more, or pass latents [B, {self.z_dim}]")
            return self.images(range(z), seed, labels)
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"latents of shape {list(z.shape)}: this generator takes [B, {self.z_dim}]")
        # Waiting for the copy: z may be pinned, and the caller may write to it afterwards.
        images: Tensor = self.net(z.to(self.device, torch.float32), self._class_tensor(labels, len(z)))
        return images

    @torch.no_grad()
    def restore(self, pictures: Tensor, labels: Labels = None, *, seed: int = 0) -> Tensor:
        """Return restored images of degraded ones, both [B, C, H, W] in -1..1; float32, on the generator's device.

        Args:
            labels: As for a call.
            seed: Seed of the latents, for a network that uses them (`model.G.noise`).

        Raises:
            ValueError: They do not fit the generator, or it makes images of noise.
        """
        if not self.restores:
            raise ValueError("this generator makes images of noise: call it with latents or a number")
        expected = self.image.channels, self.image.height, self.image.width
        if pictures.shape[1:] != expected:
            takes = ", ".join(map(str, expected))
            raise ValueError(f"images of shape {list(pictures.shape)}: this generator takes [B, {takes}]")
        classes = self._class_tensor(labels, len(pictures))
        z = copy_to_device(sampling.latents(seed, range(len(pictures)), self.z_dim), self.device)
        images: Tensor = self.net(pictures.to(self.device, torch.float32), z, classes)  # it waits, as in a call
        return images

    def images(self, numbers: Sequence[int], seed: int = 0, labels: Labels = None) -> Tensor:
        """Return the images of some numbers, [B, C, H, W] in -1..1.

        Args:
            labels: As for a call; None: the image of number i is of class `seen[i % len(seen)]`.
        """
        return torch.cat(list(self.sampler(seed).images(numbers, self._classes_of_numbers(labels, numbers))))

    def pictures(self, numbers: Sequence[int], seed: int = 0, labels: Labels = None) -> Iterator[np.ndarray]:
        """Yield the same images one by one, stored values [H, W, C], as `distgan generate` writes them."""
        return self.sampler(seed).pixels(numbers, self._classes_of_numbers(labels, numbers))

    def sampler(self, seed: int) -> sampling.Sampler:
        """Return what draws the images of a seed."""
        return sampling.Sampler(self.net, self.z_dim, seed, self.image)

    def _classes_of_numbers(self, labels: Labels, numbers: Sequence[int]) -> list[int] | None:
        if labels is None and self.num_classes:
            labels = [self.seen[int(i) % len(self.seen)] for i in numbers]
        return self._classes(labels, len(numbers))

    def _class_tensor(self, labels: Labels, num: int) -> Tensor | None:
        classes = self._classes(labels, num)
        return None if classes is None else copy_to_device(np.array(classes, np.int64), self.device)

    def _classes(self, labels: Labels, num: int) -> list[int] | None:
        """Return the class of each image, None without classes. Raises ValueError for labels that do not fit."""
        if not self.num_classes:
            if labels is not None:
                raise ValueError("labels: this generator was trained without classes")
            return None
        if labels is None:
            return [self.seen[i % len(self.seen)] for i in range(num)]
        classes = [labels] * num if isinstance(labels, int) else [int(label) for label in labels]
        if len(classes) != num:
            raise ValueError(f"{len(classes)} labels for {num} images")
        if wrong := [label for label in classes if not 0 <= label < self.num_classes]:
            raise ValueError(f"label {wrong[0]}: the classes are 0 to {self.num_classes - 1}")
        if unseen := set(classes).intersection(self.spec.unseen):
            raise ValueError(
                f"label {min(unseen)}: the training data had no image of this class; `seen` lists the others"
            )
        return classes
