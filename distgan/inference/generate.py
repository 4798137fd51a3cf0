"""A checkpoint -> images, without the trainer: as files, shards, a grid or a video."""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from distgan.data import image_grid, loader
from distgan.errors import ConfigError, DataError
from distgan.inference import shard_writer, video
from distgan.inference.scoring import Score, open_score
from distgan.inference.selection import Choice, Drawn
from distgan.inference.trained_generator import Generator, load_generator, locate
from distgan.storage.home import user_path

SHARD_IMAGES, SHARD_BYTES = 2048, 256_000_000  # of a shard, where nothing else is asked for; bytes of its pixels
FILTERED_IMAGES = 1024  # that are chosen from their own candidates, where images become files
MAX_TILES = 64  # classes that a video shows side by side
GRID_SUFFIX = ".png"


def generate(
    path: str,
    num: int,
    out: str,
    *,
    kind: str,
    seed: int,
    labels: str = "",
    columns: int | None = None,
    share: float = 1.0,
    filter_by: str = "discriminator",
    balance: bool = False,
    shard_images: int = 0,
    keyframes: int = 0,
    fps: float = 25,
    rank: int = 0,
    world: int = 1,
) -> str:
    """Write `num` images as PNG files or shards into a folder, or as one grid or video; returns a line that says where.

    Args:
        labels: Classes that the images take in turn, "0,3" or "0-9"; empty for all learned. A grid has a row for each.
        columns: Of a grid, or of a video's classes; None for a row per class, or a square.
        share: Of the images made that are kept: those that look the most real (see `pick.Choice`).
        filter_by: What tells how real they look: a key of `realism.SCORES`.
        balance: Whether all classes have equally many images.
        shard_images: Of each shard; 0 for a number by the resolution.
        keyframes: Latents that a video passes; 0 for one a second.
        fps: Frames of a video in a second; it has `num` of them.
        rank, world: Each of several processes writes its share of the files, without a word to the others.
    """
    bounds = (
        ("num", num, 1, math.inf),
        ("columns", 1 if columns is None else columns, 1, math.inf),
        ("keep-best", share, 1e-4, 1),
        ("shard-images", shard_images, 0, math.inf),
        ("fps", fps, 1, 240),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise ConfigError(
                f"--{name} {value:g}: " + (f"at least {low}" if high == math.inf else f"{low:g} to {high:g}")
            )
    target, is_file = user_path(out), kind in ("grid", "video")
    if target.exists() and target.is_dir() == is_file:
        raise ConfigError(f"--out {out} is {f'a folder, a {kind} is one file' if is_file else 'a file'}")
    if is_file and (share < 1 or balance):
        raise ConfigError(f"--keep-best and --balance choose images of a set (--as png or shards); a {kind} is not one")
    if kind == "grid":
        require_grid(target)
    if kind == "video":
        video.require_writer(target)
    if is_file and rank > 0:
        return ""
    where = locate(path)  # once: a run that trains may write a newer one meanwhile
    G = load_generator(where)
    chosen = parse_labels(labels, G)
    if is_file:
        target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "grid":
        _write_grid(G, target, num, seed, chosen, columns)
        return f"{num} images: {target}"
    if kind == "video":
        return _write_video(G, target, num, seed, chosen, columns, keyframes, fps)

    unit = shard_images or max(1, min(SHARD_IMAGES, SHARD_BYTES // (3 * G.resolution**2)) // G.chunk) * G.chunk
    if kind == "png":
        unit = G.chunk if share == 1 else FILTERED_IMAGES
    choice = Choice(num, unit, tuple(dict.fromkeys(chosen) if balance else chosen), share, balance)
    score = open_score(filter_by, where, G.chunk, G.device) if share < 1 else None
    draw = functools.partial(drawn, G, score, choice, seed)
    function_of, card = _provenance(G, choice, seed)
    if share < 1:
        function_of["filter_by"] = filter_by
    if kind == "png":
        if share == 1:
            del function_of["shard_images"]  # which only says how many are made at once
        folder = shard_writer.claim(out, function_of, may_grow=share == 1 and not balance)
        _write_files(folder, choice, draw, rank, world)
        return f"{num} images: {target}"
    threads = loader.decoding_threads(world, G.device.type)
    return shard_writer.write(out, choice, draw, function_of, card=card, rank=rank, world=world, threads=threads)


def _provenance(G: Generator, choice: Choice, seed: int) -> tuple[dict, dict]:
    """What the images of a set are a function of, and what else its card says."""
    origin = {key: value for key, value in G.origin.items() if key != "config"}
    function_of = origin | {
        "seed": seed,
        "num": choice.num,
        "labels": list(choice.classes),
        "keep_best": choice.share,
        "balance": choice.balance,
        "shard_images": choice.unit,
    }
    card = {
        "classes": [str(label) for label in range(G.num_classes)] or None,
        "image": "png",
        "resolution": G.resolution,
        "source": f"distgan generate, {origin['run']}, {origin['checkpoint']}",
        "candidates": choice.num_candidates,
        "config": G.origin["config"],
    }
    return function_of, card


def drawn(G: Generator, score: Score | None, choice: Choice, seed: int, unit: int) -> Iterator[Drawn]:
    """The images of a unit, in order of number.

    With a score, these are the best of the unit's candidates by its word on the images as G made them. D knows the
    class where it has them, and its logits of two classes need not be on one scale: `Choice.balance` compares within a
    class.
    """
    numbers = choice.candidates(unit)
    if score is None:
        pictures = G.pictures(numbers, seed, choice.labels(numbers))
        yield from (Drawn(i, choice.label(i), picture) for i, picture in zip(numbers, pictures))
        return
    held: list[Drawn] = []
    first = numbers.start // G.chunk * G.chunk
    for start in range(first, numbers.stop, G.chunk):
        block = range(start, start + G.chunk)  # whole, since D may compare an image with its neighbors
        images = G.images(block, seed, choice.labels(block))
        classes = torch.tensor(choice.labels(block), device=G.device) if choice.classes else None
        with torch.no_grad():
            scores = score(images, classes)
        if not scores.isfinite().all():
            raise DataError(
                f"the scores of images {block.start} to {block.stop - 1} are not finite: --keep-best needs them"
            )
        for i, of_image, picture in zip(block, scores.tolist(), image_grid.to_uint8(images)):
            if i in numbers:
                held.append(Drawn(i, choice.label(i), picture, of_image))
        held = choice.best(unit, held)
    yield from held


def _write_files(target: Path, choice: Choice, draw: Callable[[int], Iterator[Drawn]], rank: int, world: int) -> None:
    for unit in range(rank, choice.num_units, world):
        for one in draw(unit):
            # Class folders, as `distgan pack` reads them.
            folder = target if one.label is None else target / f"{one.label:03d}"
            folder.mkdir(exist_ok=True)
            image_grid.save_png(folder / f"{one.number:08d}.png", one.picture)


def require_grid(target: Path) -> None:
    """Refuse a name that does not say what a grid is."""
    if target.suffix.lower() != GRID_SUFFIX:
        raise ConfigError(f"--out {target}: a grid is a file that ends in {GRID_SUFFIX}")


def _write_grid(G: Generator, target: Path, num: int, seed: int, chosen: list[int], columns: int | None) -> None:
    columns = columns or (-(-num // len(chosen)) if chosen else math.ceil(math.sqrt(num)))
    each = [chosen[i // columns % len(chosen)] for i in range(num)] if chosen else None
    image_grid.save_png(target, image_grid.grid(list(G.pictures(range(num), seed, each)), columns))


def _write_video(
    G: Generator, target: Path, num: int, seed: int, chosen: list[int], columns: int | None, keyframes: int, fps: float
) -> str:
    if len(chosen) > MAX_TILES:
        raise ConfigError(
            f"a video shows {MAX_TILES} classes at most, and there are {len(chosen)}: name some by --labels"
        )
    if num < 2:
        raise ConfigError(f"--num {num}: a video has 2 frames or more")
    keyframes = keyframes or max(2, round(num / fps))
    if not 2 <= keyframes <= num:
        raise ConfigError(f"--keyframes {keyframes}: 2 to {num}, the number of frames (--num)")
    columns = columns or math.ceil(math.sqrt(len(chosen) or 1))
    video.save(target, video.frames(G, seed, num, keyframes, chosen, columns), fps)
    return f"{num} frames, {num / fps:.1f} s, by {keyframes} latents and back to the first: {target}"


def parse_labels(text: str, G: Generator) -> list[int]:
    """ "0,3,7-9" -> [0, 3, 7, 8, 9]; "" -> all that the training data had images of."""
    num_classes = G.num_classes
    if not text:
        return [*G.seen]
    if not num_classes:
        raise ConfigError("--labels: this generator was trained without classes (model.conditional=false)")
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ConfigError(
                f"--labels {text}: write class numbers as 0,3,7 or 0-9, of 0 to {num_classes - 1}; names are not known "
                "here, `classes` in the data set's dataset.json lists them in that order"
            )
        if not int(first) <= int(last or first) < num_classes:
            raise ConfigError(f"--labels {text}: the classes are 0 to {num_classes - 1}")
        found += range(int(first), int(last or first) + 1)
    if unseen := set(found).intersection(G.spec.unseen):
        raise ConfigError(f"--labels {text}: class {min(unseen)} had no image in the training data; leave it out")
    return found
