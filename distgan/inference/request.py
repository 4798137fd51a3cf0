"""Read what is asked of a generator: which images, of which classes or conditions, of which size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec
from distgan.inference.selection import parse_classes
from distgan.inference.trained_generator import TrainedGenerator

FPS = 25.0


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `distgan generate`.

    Attributes:
        kind: "png", "npy", "shards", "grid" or "video".
        num: Number of images, or frames of a video.
        labels: Classes that the images take in turn, "0,3", "0-9" or "cat,dog"; empty for all learned. A grid has a row
            for each.
        conditions: Conditions that the images take in turn, such as "age=40,kind=cat", in place of classes; empty for
            those of real images, by (seed, i). A grid has a row for each.
        sweep: Values of one condition, as "age=10:80:8", that a grid shows side by side: a latent to a row.
        columns: Columns of a grid, or of a video's classes; None for a row per class, or a square.
        share: Share of the images made to keep, those with the best scores (see `SampleSelection`).
        filter_by: Name of the score, one of `scoring.SCORES`; empty for the first.
        balance: Whether all classes have the same number of images.
        shard_images: Images of a shard; 0 for a number by the resolution.
        keyframes: Latents that a video passes through; 0 for one per second.
        fps: Frames of a video per second; None for 25.
        truncation: See `truncation.truncated`; None for none.
        aspect: Proportions "W:H" that images are stretched to, "data" for those of the training data; "" for none.

    Raises:
        ConfigError: A number is out of bounds.
    """

    kind: str = "png"
    num: int = 64
    seed: int = 0
    labels: str = ""
    columns: int | None = None
    share: float = 1.0
    filter_by: str = ""
    balance: bool = False
    shard_images: int = 0
    keyframes: int = 0
    fps: float | None = None
    aspect: str = ""
    conditions: tuple[str, ...] = ()
    sweep: str = ""
    truncation: float | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("num", self.num, 1, math.inf),
            ("columns", 1 if self.columns is None else self.columns, 1, math.inf),
            ("keep-best", self.share, 1e-4, 1),
            ("shard-images", self.shard_images, 0, math.inf),
            ("fps", FPS if self.fps is None else self.fps, 1, 240),
        ):
            if not low <= value <= high:
                allowed = f"at least {low}" if high == math.inf else f"{low:g} to {high:g}"
                raise ConfigError(f"--{name} {value:g}: {allowed}")
        for name, is_given, kinds in (
            ("shard-images", self.shard_images, ("shards",)),
            ("keyframes", self.keyframes, ("video",)),
            ("fps", self.fps is not None, ("video",)),
            ("columns", self.columns is not None, ("grid", "video")),
        ):
            if is_given and self.kind not in kinds:
                raise ConfigError(f"--{name} is for --as {' and '.join(kinds)}, not {self.kind}: leave it out")
        if self.filter_by and self.share == 1:
            raise ConfigError(f"--filter-by {self.filter_by} says what is best: name the share to keep by --keep-best")

    @property
    def is_file(self) -> bool:
        """Return whether the result is one file, not a set of images."""
        return self.kind in ("grid", "video")


@dataclass(frozen=True)
class Request:
    """What `distgan generate` was asked for, in a generator's own numbers.

    Attributes:
        classes: Class numbers that images take in turn; empty for a generator without classes.
        conditions: Values of conditions that images take in turn, [K, R]; None for those of real images.
        image: The images as they are written, of the generator's size or stretched.
    """

    options: GenerateOptions
    classes: list[int]
    conditions: np.ndarray | None
    image: ImageSpec


def resolve(options: GenerateOptions, G: TrainedGenerator) -> Request:
    """Return what options ask of a generator. Raises ConfigError for what it did not learn."""
    image = stretched(G, options.aspect)
    if options.balance and G.conditions is not None:
        raise ConfigError("--balance is about classes, and this generator takes conditions: leave it out")
    classes = parse_labels(options.labels, G)
    return Request(options, classes, parse_conditions(options.conditions, G, options.sweep), image)


def parse_labels(text: str, G: TrainedGenerator) -> list[int]:
    """Return the classes that `--labels` names, "0,3,7-9" -> [0, 3, 7, 8, 9]; "" -> all with training images.

    Names that the training data gave its classes are taken, too.

    Raises:
        ConfigError: The generator has no such class, or did not learn it.
    """
    if not text:
        return [*G.seen]
    if G.conditions is not None:
        names = ", ".join(G.conditions.conditions.names)
        raise ConfigError(f"--labels {text}: this generator takes conditions ({names}): --condition NAME=VALUE,...")
    if not G.num_classes:
        raise ConfigError("--labels: this generator was trained without classes (model.conditional=false)")
    usage = (
        f"write class numbers as 0,3,7 or 0-9, of 0 to {G.num_classes - 1}"
        if G.spec.class_names
        else f"write class numbers as 0,3,7 or 0-9, of 0 to {G.num_classes - 1}; names are not known "
        "here, `classes` in the data set's dataset.json lists them in that order"
    )
    classes = parse_classes(text, G.num_classes, f"--labels {text}", usage, G.spec.class_names)
    if unseen := set(classes).intersection(G.spec.unseen):
        raise ConfigError(f"--labels {text}: class {min(unseen)} had no image in the training data; leave it out")
    return classes


def parse_conditions(texts: Sequence[str], G: TrainedGenerator, sweep: str = "") -> np.ndarray | None:
    """Return the values [K, R] that `--condition` names; None without any. Raises ConfigError for others than G's.

    Args:
        sweep: What `--sweep` says; its condition need not be named.
    """
    if not texts:
        return None
    if G.conditions is None:
        takes = f"classes: --labels 0-{G.num_classes - 1}" if G.num_classes else "no conditions (data.condition)"
        raise ConfigError(f"--condition {texts[0]}: this generator takes {takes}")
    try:
        return G.conditions.named(texts, swept=sweep.partition("=")[0])
    except ValueError as error:
        raise ConfigError(f"--condition: {error}") from None


def stretched(G: TrainedGenerator, aspect: str) -> ImageSpec:
    """Return the images that `--aspect` asks for: a generator's own, with one side enlarged. Raises ConfigError."""
    if not aspect:
        return G.image
    if aspect == "data":
        proportion = G.spec.aspect
        if not proportion:
            raise ConfigError(
                "--aspect: the generator's training data was not stretched, or its card does not say so (`distgan pack "
                "--crop stretch` does): name the proportions, as --aspect 4:3"
            )
    else:
        across, _, down = aspect.partition(":")
        try:
            proportion = float(across) / float(down or 1)
        except (ValueError, ZeroDivisionError):
            proportion = 0.0
        if not 1 / 16 <= proportion <= 16:
            raise ConfigError(f"--aspect {aspect}: width and height as 4:3 or 1.33, at most 16 times as long")
    height, width = G.image.height, G.image.width
    if proportion >= width / height:
        return replace(G.image, width=round(height * proportion))
    return replace(G.image, height=round(width / proportion))
