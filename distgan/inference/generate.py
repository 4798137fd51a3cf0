"""Generate images of a checkpoint: as PNG files, shards, a grid or a video."""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from distgan.data import image_file, image_grid, loader
from distgan.data.resize import fit
from distgan.distributed.device_copy import copy_to_device
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec, square
from distgan.inference import sampling, shard_writer, video
from distgan.inference.loading import load_generator, locate
from distgan.inference.scoring import Score, open_score
from distgan.inference.selection import GeneratedImage, SampleSelection, parse_classes
from distgan.inference.sweep_grid import SweepOptions, bands_of, parse_conditions, tiles_of, write_legend, write_sweep
from distgan.inference.trained_generator import TrainedGenerator
from distgan.storage.atomic import replace_file, replacing
from distgan.storage.home import user_path
from distgan.transforms.image_values import to_pixels

SHARD_IMAGES, SHARD_BYTES = 2048, 256_000_000  # of a shard by default, whichever is less; bytes of uncompressed pixels
FILTERED_IMAGES = 1024  # of a group whose best images become files
MAX_TILES = 64  # classes that a video shows side by side
GRID_SUFFIX = ".png"


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
        filter_by: Name of the score, one of `scoring.SCORES`.
        balance: Whether all classes have the same number of images.
        shard_images: Images of a shard; 0 for a number by the resolution.
        keyframes: Latents that a video passes through; 0 for one per second.
        fps: Frames of a video per second.
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
    filter_by: str = "discriminator"
    balance: bool = False
    shard_images: int = 0
    keyframes: int = 0
    fps: float = 25
    aspect: str = ""
    conditions: tuple[str, ...] = ()
    sweep: str = ""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("num", self.num, 1, math.inf),
            ("columns", 1 if self.columns is None else self.columns, 1, math.inf),
            ("keep-best", self.share, 1e-4, 1),
            ("shard-images", self.shard_images, 0, math.inf),
            ("fps", self.fps, 1, 240),
        ):
            if not low <= value <= high:
                allowed = f"at least {low}" if high == math.inf else f"{low:g} to {high:g}"
                raise ConfigError(f"--{name} {value:g}: {allowed}")

    @property
    def is_file(self) -> bool:
        """Return whether the result is one file, not a set of images."""
        return self.kind in ("grid", "video")


def generate(path: str, out: str, options: GenerateOptions, rank: int = 0, world: int = 1) -> str:
    """Generate images of a run or checkpoint into a folder or file; returns a line that says where they are.

    Args:
        rank, world: Each of several processes writes its share of the files, without communication.
    """
    target = user_path(out)
    _check_target(target, out, options)
    if options.is_file and rank > 0:
        return ""
    where = locate(path)  # once: a run that trains may write a newer one meanwhile
    G = load_generator(where)
    if options.kind == "png":
        require_png(G.image, "npy or shards")
    shape = stretched(G, options.aspect)
    classes = parse_labels(options.labels, G)
    given = parse_conditions(options.conditions, G, options.sweep)
    if options.sweep:
        return write_sweep(
            G, target, given, SweepOptions(options.sweep, options.num, options.columns, options.seed), shape
        )
    if options.is_file:
        target.parent.mkdir(parents=True, exist_ok=True)
        write = _write_grid if options.kind == "grid" else _write_video
        return write(G, target, classes, given, options, shape)

    selection = _select(G, classes, options)
    score = open_score(options.filter_by, where, G.chunk, G.device) if options.share < 1 else None
    draw = functools.partial(_draw, G, score, selection, options.seed, shape, given)
    card = _card(G, selection, options, shape)
    groups = range(rank, selection.num_groups, world)
    if options.kind == "shards":
        threads = loader.decoding_threads(world, G.device.type)
        return shard_writer.write(out, selection, draw, card, groups, threads, shape)
    may_grow = options.share == 1 and not options.balance
    folder = shard_writer.claim(out, card["generated"], may_grow=may_grow)
    for image in (image for group in groups for image in draw(group)):
        # Class folders, as `distgan pack` reads them.
        subfolder = folder if image.label is None else folder / f"{image.label:03d}"
        subfolder.mkdir(exist_ok=True)
        file = subfolder / f"{image.number:08d}.{options.kind}"
        if image.condition is not None and G.conditions is not None:
            text = json.dumps(G.conditions.conditions.named(image.condition))
            replace_file(file.with_suffix(".json"), text + "\n")
        save_image(file, image.pixels, shape)
    return f"{options.num} images: {target}"


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


def _draw(
    G: TrainedGenerator,
    score: Score | None,
    selection: SampleSelection,
    seed: int,
    shape: ImageSpec,
    given: np.ndarray | None,
    group: int,
) -> Iterator[GeneratedImage]:
    """Yield the images of a group as they are written: of the size of `shape`."""
    for image in draw_group(G, score, selection, seed, group, given):
        yield image._replace(pixels=_stretch(image.pixels, shape)) if shape != G.image else image


def _stretch(pixels: np.ndarray, shape: ImageSpec) -> np.ndarray:
    """Resample an image to the size of `shape`; what a filter adds beyond the range at edges is clipped."""
    return fit(pixels, shape, crop="stretch").clip(shape.low, shape.high).astype(shape.dtype, copy=False)


def draw_group(
    G: TrainedGenerator,
    score: Score | None,
    selection: SampleSelection,
    seed: int,
    group: int,
    given: np.ndarray | None = None,
) -> Iterator[GeneratedImage]:
    """Yield the images of a group, in order of number.

    With a score, these are the best of the group's candidates by the score of the images as G made them. A D with
    classes knows an image's class, and its logits of two classes need not be on one scale: `balance` compares within a
    class.

    Args:
        given: Values of conditions that images take in turn, [K, R]; None: those of real images.

    Raises:
        DataError: A score is not finite.
    """

    def labels_of(numbers: range) -> tuple[sampling.Labels, Sequence[np.ndarray | None]]:
        """Return what the network is given for some images, and the values of their conditions."""
        if G.conditions is None:
            return selection.labels(numbers), [None] * len(numbers)
        values = G.conditions.chosen(given, numbers, seed)
        return G.conditions.conditions.encode(values), list(values)

    numbers = selection.candidates(group)
    if score is None:
        given_labels, values = labels_of(numbers)
        for i, pixels, of_image in zip(numbers, G.pictures(numbers, seed, given_labels), values):
            yield GeneratedImage(i, selection.label(i), pixels, condition=of_image)
        return
    best: list[GeneratedImage] = []
    first = numbers.start // G.chunk * G.chunk
    for start in range(first, numbers.stop, G.chunk):
        chunk = range(start, start + G.chunk)  # whole, since D may compare an image with its neighbors
        given_labels, values = labels_of(chunk)
        images = G.images(chunk, seed, given_labels)
        labels = None if given_labels is None else copy_to_device(np.asarray(given_labels), G.device)
        with torch.no_grad():
            scores = score(images, labels).tolist()
        if not all(map(math.isfinite, scores)):
            raise DataError(
                f"the scores of images {chunk.start} to {chunk.stop - 1} are not finite: --keep-best needs them"
            )
        for i, value, pixels, of_image in zip(chunk, scores, to_pixels(images, G.image), values):
            if i in numbers:
                best.append(GeneratedImage(i, selection.label(i), pixels, value, of_image))
        best = selection.best(group, best)
    yield from best


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


def require_grid(target: Path) -> None:
    """Refuse a grid's file of another suffix. Raises ConfigError."""
    if target.suffix.lower() != GRID_SUFFIX:
        raise ConfigError(f"--out {target}: a grid is a file that ends in {GRID_SUFFIX}")


def require_png(image: ImageSpec, others: str) -> None:
    """Refuse PNG files of images that do not fit into them. Raises ConfigError.

    Args:
        others: The kinds of files that hold any image.
    """
    if image_file.suffix(image) != "png":
        raise ConfigError(
            f"--as png: {image.channels} channel(s) of {image.dtype} do not fit into PNG files: --as {others} keeps "
            "all, --as grid shows three channels"
        )


def _check_target(target: Path, out: str, options: GenerateOptions) -> None:
    """Raise ConfigError where the result cannot be written to `out`, or is no set although one is asked for."""
    kind = options.kind
    if target.exists() and target.is_dir() == options.is_file:
        raise ConfigError(f"--out {out} is {f'a folder, a {kind} is one file' if options.is_file else 'a file'}")
    if options.is_file and (options.share < 1 or options.balance):
        raise ConfigError(f"--keep-best and --balance choose images of a set (--as png or shards); a {kind} is not one")
    if options.sweep and kind != "grid":
        raise ConfigError(f"--sweep {options.sweep} lays values side by side, in a grid: --as grid")
    if kind == "grid":
        require_grid(target)
    if kind == "video":
        video.require_writer(target)


def _select(G: TrainedGenerator, classes: list[int], options: GenerateOptions) -> SampleSelection:
    """Return the selection that makes a set; a group becomes a shard, or as many files as are made at once."""
    if options.kind in ("png", "npy"):
        size = G.chunk if options.share == 1 else FILTERED_IMAGES
    else:
        by_resolution = min(SHARD_IMAGES, SHARD_BYTES // G.image.num_bytes) // G.chunk
        size = options.shard_images or max(1, by_resolution) * G.chunk
    taken = tuple(dict.fromkeys(classes) if options.balance else classes)
    return SampleSelection(options.num, size, taken, options.share, options.balance)


def _card(G: TrainedGenerator, selection: SampleSelection, options: GenerateOptions, shape: ImageSpec) -> dict:
    """Return the card of a set; `generated` holds all that its images are a function of."""
    origin = {key: value for key, value in G.origin.items() if key != "config"}
    generated = origin | {
        "seed": options.seed,
        "num": selection.num,
        "labels": list(selection.classes),
        "keep_best": selection.share,
        "balance": selection.balance,
        "shard_images": selection.group_size,
    }
    if shape != G.image:
        generated["size"] = shape.size
    conditions = {}
    if G.conditions is not None:
        generated["conditions"] = list(options.conditions)
        conditions = {"conditions": [asdict(one) for one in G.conditions.conditions.fields]}
    if options.share < 1:
        generated["filter_by"] = options.filter_by
    elif options.kind in ("png", "npy"):
        del generated["shard_images"]  # it only says how many are made at once
    return {
        "classes": [str(label) for label in range(G.num_classes)] or None,
        **conditions,
        "image": image_file.suffix(shape),
        "resolution": shape.height if shape.height == shape.width else None,
        **_card_of_values(shape),
        "source": f"distgan generate, {origin['run']}, {origin['checkpoint']}",
        "candidates": selection.num_candidates,
        "config": G.origin["config"],
        "generated": generated,
    }


def _card_of_values(image: ImageSpec) -> dict:
    """Return what a card says of images that are not square ones of colors in 8 bits."""
    if image == square(image.height):
        return {}
    return {
        "channels": image.channels,
        "dtype": image.dtype,
        "alpha": image.alpha,
        "height": image.height,
        "width": image.width,
        "range": None if image.dtype == "uint8" else [image.low, image.high],
    }


def save_image(path: Path, pixels: np.ndarray, image: ImageSpec) -> None:
    """Write one image's file, .png or .npy as the path says, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(image_file.to_bytes(pixels, image, path.suffix[1:]))


def _write_grid(
    G: TrainedGenerator,
    target: Path,
    classes: list[int],
    given: np.ndarray | None,
    options: GenerateOptions,
    shape: ImageSpec,
) -> str:
    num = options.num
    groups = len(classes) if given is None else len(given)
    columns = options.columns or (-(-num // groups) if groups else math.ceil(math.sqrt(num)))
    rows = [i // columns for i in range(num)]
    labels: sampling.Labels = [classes[row % len(classes)] for row in rows] if classes else None
    if G.conditions is not None:
        values = G.conditions.chosen(given, range(rows[-1] + 1), options.seed)
        labels = G.conditions.conditions.encode(values)[rows]
        write_legend(target, [f"row {i}: {G.conditions.conditions.text(row)}" for i, row in enumerate(values, 1)])
    parts = G.sampler(options.seed).display(range(num), labels, bands=bands_of(G))
    image_grid.save_png(target, image_grid.grid(tiles_of(parts, shape), columns))
    return f"{num} images: {target}"


def _write_video(
    G: TrainedGenerator,
    target: Path,
    classes: list[int],
    given: np.ndarray | None,
    options: GenerateOptions,
    shape: ImageSpec,
) -> str:
    num, fps = options.num, options.fps
    if shape != G.image:
        raise ConfigError("--aspect: a video keeps the generator's own size; png, npy, shards and grid take --aspect")
    shown: list[int] | np.ndarray = classes
    if G.conditions is not None:  # one of a real image, where none is named
        shown = G.conditions.conditions.encode(G.conditions.drawn(options.seed, [0]) if given is None else given)
    if len(shown) > MAX_TILES:
        what, option = ("classes", "--labels") if classes else ("conditions", "--condition")
        raise ConfigError(
            f"a video shows {MAX_TILES} {what} at most, and there are {len(shown)}: name some by {option}"
        )
    if num < 2:
        raise ConfigError(f"--num {num}: a video has 2 frames or more")
    keyframes = options.keyframes or max(2, round(num / fps))
    if not 2 <= keyframes <= num:
        raise ConfigError(f"--keyframes {keyframes}: 2 to {num}, the number of frames (--num)")
    columns = options.columns or math.ceil(math.sqrt(len(shown) or 1))
    video.save(target, video.frames(G, options.seed, num, keyframes, shown, columns, bands_of(G)), fps)
    return f"{num} frames, {num / fps:.1f} s, by {keyframes} latents and back to the first: {target}"
