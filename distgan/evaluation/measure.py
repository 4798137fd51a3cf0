"""Images -> features, on all ranks -> numbers: a generator, or any set of images, against real ones.

Each rank measures its share; sums are merged by one all-reduce, features gather on rank 0, which computes. Image i of
a generator depends on (seed, i) alone, so values depend on the number of ranks by the rounding of features and sums.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.distributed.process_group import World
from distgan.errors import ConfigError, DataError, MachineError
from distgan.evaluation.image_sets import Images, ImageSet, ShardImages, shares
from distgan.metrics import frechet, reference_stats
from distgan.metrics.extractors import Extractor
from distgan.metrics.frechet import Moments
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import METRICS, NAN, Features, Values
from distgan.rng import host_rng
from distgan.storage.home import default_cache_dir
from distgan.tracking.console import duration

log = logging.getLogger("distgan")

TELL_SEC = 20  # from one line of how far it is to the next
GREY_LEVELS = 16  # that channels may differ by, in an image without color
Poll = Callable[[], None]  # called by all ranks in each round; raises StopAsked on all of them, or on none


class StopAsked(Exception):
    """A stop was asked for in the middle of an evaluation, which is given up; raised on all ranks alike.

    Its one argument is why, a key of `stop.EXIT_CODES`.
    """


@dataclass
class Extracted:
    """What all ranks found together, on rank 0; elsewhere only the counts.

    Attributes:
        num: Images that were measured.
        numbers: Those of them that `features.points` are of; int64 [n].
        num_damaged, num_grey, num_nonfinite: Images that could not be decoded, have no color, and have features that
            are not finite.
    """

    num: int
    num_damaged: int
    num_grey: int
    num_nonfinite: int
    features: Features | None = None
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass
class Measured:
    """The outcome of an evaluation, on all ranks; `extracted` has features on rank 0 only."""

    values: Values
    warnings: list[str]
    seconds: float
    extracted: Extracted


def extract(world: World, extractor: Extractor, images: ImageSet, keep: int, poll: Poll) -> Extracted:
    """Features of images, each exactly once.

    Args:
        keep: Images whose features themselves are wanted; a fixed random choice where there are more.
    """
    wanted = np.zeros(images.num, bool)
    wanted[host_rng.permutation(host_rng.key(0, "kept features"), images.num)[:keep]] = True
    on_cpu = world.device.type != "cuda"
    moments = Moments(extractor.dim, "cpu" if on_cpu else world.device)
    counts = torch.zeros(3, dtype=torch.float64, device=moments.sums.device)  # measured, gray, not finite
    numbers, points, logits, labels = [], [], [], []
    for share in _telling(shares(images, world.rank, world.size), images.num, world):
        if share is not None and len(share.numbers):
            pixels = torch.from_numpy(share.pixels).permute(0, 3, 1, 2)
            found, scores = extractor(pixels)
            moments.add(found)
            counts[0] += len(found)
            counts[1] += count_grey(pixels.to(counts.device, non_blocking=True))
            counts[2] += (~found.isfinite().all(dim=1)).sum()
            own = torch.from_numpy(wanted[share.numbers])
            numbers.append(torch.from_numpy(share.numbers)[own])
            points.append(found.cpu()[own])
            if scores is not None:
                logits.append(scores.cpu()[own])
            if share.labels is not None:
                labels.append(torch.from_numpy(share.labels)[own])
        poll()
    world.sum(moments.sums)
    num, num_grey, num_nonfinite = (int(count) for count in world.sum(counts))
    extracted = Extracted(num, images.num - num, num_grey, num_nonfinite)
    empty = torch.empty(0, dtype=torch.int64)
    order = _on_main(world, numbers, empty)
    columns = {
        "points": _on_main(world, points, torch.empty(0, extractor.dim)),
        "logits": _on_main(world, logits, torch.empty(0, extractor.num_logits)) if extractor.num_logits else None,
        "labels": _on_main(world, labels, empty),
    }
    if world.is_main and num >= 2:
        order, places = order.sort()
        columns = {
            name: None if column is None or not len(column) else column[places] for name, column in columns.items()
        }
        columns["points"] = torch.empty(0, extractor.dim) if columns["points"] is None else columns["points"]
        extracted.features = Features(moments.gaussian(), **columns)
        extracted.numbers = order.numpy()
    return extracted


def _telling(taken: Iterable[Images | None], num: int, world: World) -> Iterator[Images | None]:
    """The same shares, and now and then a line of how far it is."""
    started = told = time.monotonic()
    done = 0
    for share in taken:
        yield share
        done += world.size * len(share.numbers) if share is not None else 0
        now = time.monotonic()
        if world.is_main and 0 < done < num and now - told > TELL_SEC:
            told = now
            log.info(f"{done:,} of {num:,} images seen, {duration((now - started) / done * (num - done))} to go")


def _on_main(world: World, parts: list[Tensor], empty: Tensor) -> Tensor:
    return torch.cat([empty, *world.collect(torch.cat([empty, *parts]))])


def count_grey(pixels: Tensor) -> Tensor:
    """How many of uint8 [B, 3, H, W] have three equal channels, but for what a network that draws gray gets wrong.

    Counted where the pixels are, by whole numbers; the host does not wait for it.
    """
    return ((pixels.amax(1) - pixels.amin(1)).flatten(1).amax(1) <= GREY_LEVELS).sum()


def known_reals(
    world: World,
    extractor: Extractor,
    images: ShardImages,
    *,
    keep: int,
    poll: Poll,
    cache: Path | None = None,
    max_corrupt_fraction: float = 0.01,
) -> Reference | None:
    """What there is to know of real images, from the cache or by looking at each of them once; None but on rank 0.

    Raises:
        DataError: too many of them are corrupt, or fewer than two are good.
    """
    origin = images.origin | {"extractor": extractor.identity, "kept": min(keep, images.num)}
    path = (cache or default_cache_dir() / "metrics") / f"{reference_stats.key_of(origin)}.npz"
    known = reference_stats.load_cached(path, origin) if world.is_main else None
    if world.broadcast(known is not None):
        return known
    log.info(f"reading {images.num:,} real images once, with {extractor.name}")
    found = extract(world, extractor, images, keep, poll)
    if found.num_damaged > max_corrupt_fraction * images.num or found.num < 2:
        raise DataError(
            f"{found.num_damaged} of {images.num} real images are corrupt, more than data.max_corrupt_fraction="
            f"{max_corrupt_fraction:g} allows: repair the shards"
        )
    if found.num_nonfinite:
        raise DataError(f"{found.num_nonfinite} real images have features of {extractor.name} that are not finite")
    if not world.is_main:
        return None
    found.features.root = frechet.root(found.features.gaussian.cov)
    found.features.logits = None
    known = Reference(found.features, origin, found.numbers, found.num_damaged, found.num_grey)
    try:
        reference_stats.save(path, known)
    except MachineError as error:
        log.warning(f"{error}; the next evaluation reads the real images again")
    return known


def check_metrics(names: Sequence[str], extractor: Extractor, num: int, *, has_points: bool = True) -> None:
    """Raises ConfigError where a metric is not defined for `num` images, this extractor, or this reference."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"eval.metrics={name}: there are {', '.join(METRICS)}")
        if METRICS[name].needs_logits and not extractor.num_logits:
            raise ConfigError(f"eval.metrics={name} needs a classifier, which {extractor.name} is not: leave it out")
        if METRICS[name].needs_points and not has_points:
            raise ConfigError(
                f"eval.metrics={name} needs the features of real images, and eval.reference has only mu and sigma: "
                "leave it out, or name shards"
            )
        if num < METRICS[name].least:
            raise ConfigError(f"eval.metrics={name} needs {METRICS[name].least} images at least, not {num}")


def measure(
    world: World,
    extractor: Extractor,
    real: Reference | None,
    images: ImageSet,
    metrics: Sequence[str],
    *,
    poll: Poll,
    with_errors: bool = False,
) -> Measured:
    """Compare images with real ones.

    Args:
        real: On rank 0; whatever elsewhere.
        metrics: Names of METRICS, which `check_metrics` found fit.
        with_errors: Standard errors also where they cost more than the value.
    """
    started = time.perf_counter()
    keeps = with_errors or any(METRICS[name].needs_points or METRICS[name].needs_logits for name in metrics)
    found = extract(world, extractor, images, images.num if keeps else 0, poll)

    def compute() -> tuple[Values, list[str]]:
        words = _warnings(real, found, extractor)
        values: Values = {}
        for name in metrics:
            if found.num < METRICS[name].least:
                raise DataError(f"eval.metrics={name} needs {METRICS[name].least} images at least, not {found.num}")
            if found.num_nonfinite:
                values |= dict.fromkeys(METRICS[name].names, (NAN, NAN))
            else:
                values |= METRICS[name].values(
                    _on(real.features, world.device), _on(found.features, world.device), with_errors
                )
        return values, words

    values, words = world.on_main(compute)
    return Measured(values, words, time.perf_counter() - started, found)


def _on(features: Features, device: torch.device) -> Features:
    """With the points on a device; Gaussians stay on the CPU."""
    logits = None if features.logits is None else features.logits.to(device)
    return Features(features.gaussian, features.points.to(device), logits, features.labels, features.root)


def _warnings(real: Reference, found: Extracted, extractor: Extractor) -> list[str]:
    words = []
    if found.num_nonfinite:
        words.append(f"{found.num_nonfinite} of {found.num} images have features that are not finite: no values")
    for side, num in (("generated", found.num), ("real", real.features.gaussian.num)):
        if 0 < num <= extractor.dim:
            words.append(
                f"{num} {side} images for {extractor.dim} features: the Fréchet distance is mostly bias; "
                f"compare it only with values of the same number of images, and look at kid"
            )
    if found.num_damaged:
        words.append(f"{found.num_damaged} images are corrupt and left out")
    num_real = real.features.gaussian.num
    if found.num_grey == found.num and real.origin and real.num_grey < num_real / 2:
        words.append("all images are gray, and the real ones are not")
    if real.origin and real.num_grey == num_real and found.num_grey < found.num / 2:
        words.append("the real images are all gray, and these are not")
    return words
