"""Generate images of a checkpoint: as PNG files, shards, a grid or a video."""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from distgan.data import image_file, loader
from distgan.data.resize import fit
from distgan.distributed.device_copy import copy_to_device
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec, square
from distgan.inference import sampling, shard_writer, video
from distgan.inference.loading import load_generator, locate
from distgan.inference.picture_grid import require_grid, write_grid, write_sweep
from distgan.inference.request import GenerateOptions, Request, resolve
from distgan.inference.scoring import SCORES, Score, open_score
from distgan.inference.selection import GeneratedImage, SampleSelection
from distgan.inference.trained_generator import TrainedGenerator
from distgan.inference.truncation import truncated
from distgan.storage.atomic import replace_file, replacing
from distgan.storage.home import user_path
from distgan.transforms.image_values import to_pixels

SHARD_IMAGES, SHARD_BYTES = 2048, 256_000_000  # of a shard by default, whichever is less; bytes of uncompressed pixels
FILTERED_IMAGES = 1024  # of a group whose best images become files


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
    if options.truncation is not None:
        G = truncated(G, options.truncation)
    if options.kind == "png":
        require_png(G.image, "npy or shards")
    request = resolve(options, G)
    if options.is_file:
        target.parent.mkdir(parents=True, exist_ok=True)
        write = video.write if options.kind == "video" else write_sweep if options.sweep else write_grid
        return write(G, target, request)

    selection = _select(G, request)
    score = open_score(options.filter_by or SCORES[0], where, G.chunk, G.device) if options.share < 1 else None
    draw = functools.partial(draw_group, G, score, selection, request)
    card = _card(G, selection, request)
    groups = range(rank, selection.num_groups, world)
    if options.kind == "shards":
        threads = loader.decoding_threads(world, G.device.type)
        return shard_writer.write(out, selection, draw, card, groups, threads, request.image)
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
        save_image(file, image.pixels, request.image)
    return f"{options.num} images: {target}"


def draw_group(
    G: TrainedGenerator, score: Score | None, selection: SampleSelection, request: Request, group: int
) -> Iterator[GeneratedImage]:
    """Yield the images of a group as they are written, in order of number.

    With a score, these are the best of the group's candidates by the score of the images as G made them. A D with
    classes knows an image's class, and its logits of two classes need not be on one scale: `balance` compares within a
    class.

    Raises:
        DataError: A score is not finite.
    """
    if score is None:
        images = _draw_all(G, selection, request, group)
    else:
        images = iter(_draw_best(G, score, selection, request, group))
    for image in images:
        yield image if request.image == G.image else image._replace(pixels=_stretch(image.pixels, request.image))


def _draw_all(
    G: TrainedGenerator, selection: SampleSelection, request: Request, group: int
) -> Iterator[GeneratedImage]:
    numbers = selection.candidates(group)
    labels, values = _labels_of(G, selection, request, numbers)
    for i, pixels, value in zip(numbers, G.pictures(numbers, request.options.seed, labels), values):
        yield GeneratedImage(i, selection.label(i), pixels, condition=value)


def _draw_best(
    G: TrainedGenerator, score: Score, selection: SampleSelection, request: Request, group: int
) -> list[GeneratedImage]:
    numbers = selection.candidates(group)
    best: list[GeneratedImage] = []
    first = numbers.start // G.chunk * G.chunk
    for start in range(first, numbers.stop, G.chunk):
        chunk = range(start, start + G.chunk)  # whole, since D may compare an image with its neighbors
        labels, values = _labels_of(G, selection, request, chunk)
        images = G.images(chunk, request.options.seed, labels)
        with torch.no_grad():
            scores = score(images, None if labels is None else copy_to_device(np.asarray(labels), G.device)).tolist()
        if not all(map(math.isfinite, scores)):
            raise DataError(
                f"the scores of images {chunk.start} to {chunk.stop - 1} are not finite: --keep-best needs them"
            )
        for i, of_image, pixels, value in zip(chunk, scores, to_pixels(images, G.image), values):
            if i in numbers:
                best.append(GeneratedImage(i, selection.label(i), pixels, of_image, value))
        best = selection.best(group, best)
    return best


def _labels_of(
    G: TrainedGenerator, selection: SampleSelection, request: Request, numbers: range
) -> tuple[sampling.Labels, Sequence[np.ndarray | None]]:
    """Return what the network is given for some images, and the values of their conditions."""
    if G.conditions is None:
        return selection.labels(numbers), [None] * len(numbers)
    values = G.conditions.chosen(request.conditions, numbers, request.options.seed)
    return G.conditions.conditions.encode(values), list(values)


def _stretch(pixels: np.ndarray, to: ImageSpec) -> np.ndarray:
    """Resample an image to a size; what a filter adds beyond the range at edges is clipped."""
    return fit(pixels, to, crop="stretch").clip(to.low, to.high).astype(to.dtype, copy=False)


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


def _select(G: TrainedGenerator, request: Request) -> SampleSelection:
    """Return the selection that makes a set; a group becomes a shard, or as many files as are made at once."""
    options, classes = request.options, request.classes
    if options.kind in ("png", "npy"):
        size = G.chunk if options.share == 1 else FILTERED_IMAGES
    else:
        by_resolution = min(SHARD_IMAGES, SHARD_BYTES // G.image.num_bytes) // G.chunk
        size = options.shard_images or max(1, by_resolution) * G.chunk
    taken = tuple(dict.fromkeys(classes) if options.balance else classes)
    return SampleSelection(options.num, size, taken, options.share, options.balance)


def _card(G: TrainedGenerator, selection: SampleSelection, request: Request) -> dict:
    """Return the card of a set; `generated` holds all that its images are a function of."""
    options, image = request.options, request.image
    origin = {key: value for key, value in G.origin.items() if key != "config"}
    generated = origin | {
        "seed": options.seed,
        "num": selection.num,
        "labels": list(selection.classes),
        "keep_best": selection.share,
        "balance": selection.balance,
        "shard_images": selection.group_size,
    }
    if options.truncation is not None:
        generated["truncation"] = options.truncation
    if image != G.image:
        generated["size"] = image.size
    conditions = {}
    if G.conditions is not None:
        generated["conditions"] = list(options.conditions)
        conditions = {"conditions": [asdict(one) for one in G.conditions.conditions.fields]}
    if options.share < 1:
        generated["filter_by"] = options.filter_by or SCORES[0]
    elif options.kind in ("png", "npy"):
        del generated["shard_images"]  # it only says how many are made at once
    return {
        "classes": G.spec.class_names or [str(label) for label in range(G.num_classes)] or None,
        **conditions,
        "image": image_file.suffix(image),
        "resolution": image.height if image.height == image.width else None,
        **_card_of_values(image),
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
