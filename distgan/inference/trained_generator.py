"""A trained generator, apart from the trainer: what it is, and how to draw images from it."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from distgan.condition_spec import MAX_EXAMPLES, MAX_LENGTH, Conditions, Field, VectorInput
from distgan.distributed.device_copy import copy_to_device
from distgan.image_spec import MAX_CHANNELS, DType, ImageSpec
from distgan.inference import sampling
from distgan.inference.condition_examples import ConditionExamples
from distgan.storage.saved_state import Aspect, Classes
from distgan.storage.untrusted import AtMost, Between, Name, Positive

Side = Annotated[int, Between(8, 1024)]
Condition = str | Mapping[str, object]  # "age=40,kind=cat", or the same as a mapping
# A class (number or name) or condition for each image, or one for all; vectors [n, V]; or None, see `TrainedGenerator`.
Labels = Tensor | np.ndarray | Sequence[int] | Sequence[Condition] | Condition | int | None


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
        class_names: Names of classes 0, 1 ..., where the training data had some.
        conditions, examples: The conditions in place of classes, and their values for some real images.
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
    class_names: list[Name] = field(default_factory=list)
    conditions: Annotated[list[Field], AtMost(MAX_LENGTH)] = field(default_factory=list)
    examples: Annotated[list[list[float | None]], AtMost(MAX_EXAMPLES)] = field(default_factory=list)

    @property
    def condition_examples(self) -> ConditionExamples | None:
        """Return the conditions, None without any. Raises ValueError where there are no such conditions."""
        return ConditionExamples.of_lists(self.conditions, self.examples) if self.conditions else None

    @property
    def label_input(self) -> int | VectorInput:
        """Return what the network is given as labels: the number of classes, or the kind of vectors."""
        return Conditions(self.conditions).input if self.conditions else self.num_classes

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
        images = G(16, "age=40,smiling=1")        # of a generator with conditions
        images = list(G.pictures(range(16)))      # [H, W, C] each, as `distgan generate` writes them

    An image-to-image generator is loaded by `load_generator(path, restores=True)`:

        images = G.restore(degraded)              # both float32 [B, C, H, W] in -1..1

    Attributes:
        net: The average generator in evaluation mode, its weights frozen: net(z, labels) -> [B, C, H, W], or
            net(pictures, z, labels) where it restores images.
        restores: Whether it is an image-to-image generator.
        image: Channels, size and values of the images.
        z_dim, num_classes: The length of a latent; 0 for a generator without classes.
        conditions: The conditions that it takes in place of classes, with those of some real images; None without any.
        seen: The classes with images in the training data; labels of other classes are refused.
        spec: These, the family and its settings.
        origin: Where it comes from: run, checkpoint, its hash, images seen, and the config of the training.
        chunk: Images of one forward.
    """

    def __init__(self, net: nn.Module, spec: Spec, origin: dict[str, Any]) -> None:
        self.net, self.spec, self.origin = net, spec, origin
        self.restores = "pictures" in inspect.signature(net.forward).parameters
        self.image, self.z_dim, self.num_classes = spec.image, spec.z_dim, spec.num_classes
        self.conditions = spec.condition_examples
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
            labels: A class (number or name) for each image, or one for all; None: image i is of class
                `seen[i % len(seen)]`. With conditions: such as "age=40,kind=cat" for each or for all; vectors [B, V] as
                `conditions.conditions.encode` makes them; None: image i has those of a real image, by (seed, i).
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
        images: Tensor = self.net(z.to(self.device, torch.float32), self._label_tensor(labels, len(z), seed))
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
        classes = self._label_tensor(labels, len(pictures), seed)
        z = copy_to_device(sampling.latents(seed, range(len(pictures)), self.z_dim), self.device)
        images: Tensor = self.net(pictures.to(self.device, torch.float32), z, classes)  # it waits, as in a call
        return images

    def images(self, numbers: Sequence[int], seed: int = 0, labels: Labels = None) -> Tensor:
        """Return the images of some numbers, [B, C, H, W] in -1..1.

        Args:
            labels: As for a call; None: the image of number i is of class `seen[i % len(seen)]`.
        """
        return torch.cat(list(self.sampler(seed).images(numbers, self.labels_of(labels, numbers, seed))))

    def pictures(self, numbers: Sequence[int], seed: int = 0, labels: Labels = None) -> Iterator[np.ndarray]:
        """Yield the same images one by one, stored values [H, W, C], as `distgan generate` writes them."""
        return self.sampler(seed).pixels(numbers, self.labels_of(labels, numbers, seed))

    def sampler(self, seed: int) -> sampling.Sampler:
        """Return what draws the images of a seed."""
        return sampling.Sampler(self.net, self.z_dim, seed, self.image)

    def labels_of(self, labels: Labels, numbers: Sequence[int], seed: int = 0) -> np.ndarray | None:
        """Return what the network is given for images of some numbers: classes int64 [n], or vectors float32 [n, V].

        None without classes and conditions. Raises ValueError for labels that do not fit.
        """
        if self.conditions is not None:
            return self._vectors(self.conditions, labels, numbers, seed)
        if not self.num_classes:
            if labels is not None:
                raise ValueError("labels: this generator was trained without classes")
            return None
        if labels is None:
            return np.array([self.seen[int(i) % len(self.seen)] for i in numbers], np.int64)
        return np.array(self._classes(labels, len(numbers)), np.int64)

    def _label_tensor(self, labels: Labels, num: int, seed: int) -> Tensor | None:
        given = self.labels_of(labels, range(num), seed)
        return None if given is None else copy_to_device(given, self.device)

    def _vectors(self, known: ConditionExamples, labels: Labels, numbers: Sequence[int], seed: int) -> np.ndarray:
        """Return the vectors of conditions, float32 [n, V]."""
        if labels is None:
            return known.encoded(seed, numbers)
        width = known.conditions.length
        if isinstance(labels, (Tensor, np.ndarray)):
            vectors = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels, np.float32)
            if vectors.shape != (len(numbers), width) or not np.isfinite(vectors).all():
                raise ValueError(f"vectors of shape {list(vectors.shape)}: expected finite [{len(numbers)}, {width}]")
            return vectors
        if isinstance(labels, int) or (
            not isinstance(labels, (str, Mapping)) and any(isinstance(x, int) for x in labels)
        ):
            raise ValueError(f"labels={labels}: this generator takes conditions: {', '.join(known.conditions.names)}")
        named = known.conditions.encode(known.named(labels))  # type: ignore[arg-type]  # as was checked
        if len(named) not in (1, len(numbers)):
            raise ValueError(f"{len(named)} conditions for {len(numbers)} images")
        return np.repeat(named, len(numbers), axis=0) if len(named) == 1 else named

    def _class(self, label: object) -> int:
        """Return the number of a class that is given by number or by name. Raises ValueError."""
        if not isinstance(label, str):
            number: int = int(label)  # type: ignore[call-overload]  # of NumPy and torch, too
            return number
        if label not in self.spec.class_names:
            names = ", ".join(self.spec.class_names[:10]) or "not known here"
            raise ValueError(f"label {label!r}: the names of the classes are {names}")
        return self.spec.class_names.index(label)

    def _classes(self, labels: Labels, num: int) -> list[int]:
        """Return the class of each image. Raises ValueError for labels that do not fit."""
        assert labels is not None
        classes = [self._class(labels)] * num if isinstance(labels, (int, str)) else [self._class(x) for x in labels]
        if len(classes) != num:
            raise ValueError(f"{len(classes)} labels for {num} images")
        if wrong := [label for label in classes if not 0 <= label < self.num_classes]:
            raise ValueError(f"label {wrong[0]}: the classes are 0 to {self.num_classes - 1}")
        if unseen := set(classes).intersection(self.spec.unseen):
            raise ValueError(
                f"label {min(unseen)}: the training data had no image of this class; `seen` lists the others"
            )
        return classes
