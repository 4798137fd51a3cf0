"""Measure a set of images against real ones: features on all ranks, metrics on rank 0.

Each rank extracts features of its share of the images; one all-reduce merges their sums, and the features are gathered
on rank 0, which computes the metrics. Image i of a generator depends on (seed, i) alone, so the number of ranks changes
values only by the rounding of sums.

Generated images never leave the device, and features leave it once, at the end: the host waits for no chunk.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.distributed.device_copy import copy_to_device
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, DataError, MachineError
from distgan.evaluation.image_sets import Images, ImageSet, ShardImages, chunk_size, shares
from distgan.metrics import frechet, reference_stats
from distgan.metrics.extractors import Extractor
from distgan.metrics.frechet import Moments
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import METRICS, NAN, Features, Values
from distgan.rng import host_rng
from distgan.storage.home import default_cache_dir
from distgan.tracking.console import duration

log = logging.getLogger("distgan")

REPORT_SEC = 20  # between two lines of progress
GRAY_LEVELS = 16  # largest difference of channels in an image without color
# Rounds between two questions whether to stop, which make all ranks and devices wait for one another. A round is one
# chunk of a rank: seconds on a CPU, a tenth of a second on a GPU.
STOP_ROUNDS = {"cpu": 1, "cuda": 8}

CheckStop = Callable[[], None]  # called by all ranks in the same rounds; raises StopRequested on all of them, or none


class StopRequested(Exception):
    """A stop was requested during an evaluation, which is abandoned; raised on all ranks at once.

    Its argument is the StopReason.
    """


def never_stop() -> None:
    """Do nothing: signals alone end a command."""


@dataclass
class ExtractedFeatures:
    """The features of a set of images on all ranks; ranks other than 0 have the counts only.

    Attributes:
        num: Number of images that were measured.
        numbers: Numbers of the images of `features.points`; int64 [n].
        num_corrupt, num_gray, num_nonfinite: Number of images that could not be decoded, have no color, and have
            features that are not finite.
    """

    num: int
    num_corrupt: int
    num_gray: int
    num_nonfinite: int
    features: Features | None = None
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass
class Measurement:
    """The result of an evaluation, on all ranks; `extracted` has features on rank 0 only."""

    values: Values
    warnings: list[str]
    seconds: float
    extracted: ExtractedFeatures


def extract(
    world: World, extractor: Extractor, images: ImageSet, keep: int, check_stop: CheckStop = never_stop
) -> ExtractedFeatures:
    """Extract the features of each image of a set exactly once; called by all ranks.

    Args:
        keep: Number of images whose features are kept, not only their sums; a fixed random choice if there are more.
        check_stop: Called by all ranks, once in STOP_ROUNDS rounds.
    """
    is_kept = np.zeros(images.num, bool)
    is_kept[host_rng.permutation(host_rng.key(0, "kept features"), images.num)[:keep]] = True
    device = world.device
    moments = Moments(extractor.dim, device)
    counts = torch.zeros(3, dtype=torch.float64, device=device)  # measured, gray, not finite
    numbers, points, logits, labels = [], [], [], []  # of the kept images; points and logits stay on the device
    rounds = shares(images, world.rank, world.size, chunk_size(device, images.image))
    for round_number, share in enumerate(_with_progress(rounds, images.num, world)):
        if share is not None and len(share.numbers):
            pixels = copy_to_device(share.pixels, device)
            features, class_logits = extractor(pixels)
            moments.add(features)
            counts[0] += len(features)
            counts[1] += count_gray(pixels)
            counts[2] += (~features.isfinite().all(dim=1)).sum()
            kept = np.flatnonzero(is_kept[share.numbers])
            numbers.append(torch.from_numpy(share.numbers[kept]))
            points.append(_rows(features, kept))
            if class_logits is not None:
                logits.append(_rows(class_logits, kept))
            if share.labels is not None:
                labels.append(torch.from_numpy(share.labels[kept]))
        if round_number % STOP_ROUNDS[device.type] == 0:
            check_stop()
    world.all_reduce_sum(moments.sums)
    num, num_gray, num_nonfinite = map(int, world.all_reduce_sum(counts).tolist())
    extracted = ExtractedFeatures(num, images.num - num, num_gray, num_nonfinite)
    empty = torch.empty(0, dtype=torch.int64)
    all_numbers = _on_main(world, numbers, empty)
    all_points = _on_main(world, points, torch.empty(0, extractor.dim, device=device))
    no_logits = torch.empty(0, extractor.num_logits, device=device)
    all_logits = _on_main(world, logits, no_logits) if extractor.num_logits else empty
    all_labels = _on_main(world, labels, empty)
    if world.is_main and num >= 2:
        ordered, order = all_numbers.sort()
        extracted.features = Features(
            moments.gaussian(),
            all_points[order],
            all_logits[order] if len(all_logits) else None,
            all_labels[order] if len(all_labels) else None,
        )
        extracted.numbers = ordered.numpy()
    return extracted


def _with_progress(rounds: Iterable[Images | None], num: int, world: World) -> Iterator[Images | None]:
    """Yield the same rounds, and log the progress periodically."""
    started = reported = time.monotonic()
    done = 0
    for share in rounds:
        yield share
        done += world.size * len(share.numbers) if share is not None else 0
        now = time.monotonic()
        if world.is_main and 0 < done < num and now - reported > REPORT_SEC:
            reported = now
            log.info(f"{done:,} of {num:,} images seen, {duration((now - started) / done * (num - done))} to go")


def _on_main(world: World, parts: list[Tensor], empty: Tensor) -> Tensor:
    """Concatenate the parts of all ranks, on rank 0's host."""
    return torch.cat([empty.cpu(), *world.gather_tensors(torch.cat([empty, *parts]))])


def _rows(values: Tensor, rows: np.ndarray) -> Tensor:
    """Return some rows of values on their device; all of them as they are."""
    return values if len(rows) == len(values) else values[copy_to_device(rows, values.device)]


def count_gray(pixels: Tensor) -> Tensor:
    """Return how many images of uint8 [B, 3, H, W] are gray, up to the errors of a network that draws gray.

    It is counted on the device of the pixels, in integers; the host does not wait for it.
    """
    return ((pixels.amax(1) - pixels.amin(1)).flatten(1).amax(1) <= GRAY_LEVELS).sum()


def measure_reference(
    world: World,
    extractor: Extractor,
    images: ShardImages,
    *,
    keep: int,
    check_stop: CheckStop = never_stop,
    cache: Path | None = None,
    max_corrupt_fraction: float = 0.01,
) -> Reference | None:
    """Return the statistics of real images, from the cache or by reading each image once; None on ranks other than 0.

    Args:
        keep: Number of images whose features are kept.
        cache: Folder of cached statistics; None for the default one.

    Raises:
        DataError: Too many images are corrupt, fewer than two are good, or features are not finite.
    """
    origin = images.origin | {"extractor": extractor.identity, "kept": min(keep, images.num)}
    path = (cache or default_cache_dir() / "metrics") / f"{reference_stats.key_of(origin)}.npz"
    cached = reference_stats.load_cached(path, origin) if world.is_main else None
    if world.broadcast_object(cached is not None):
        return cached
    log.info(f"reading {images.num:,} real images once, with {extractor.name}")
    extracted = extract(world, extractor, images, keep, check_stop)
    if extracted.num_corrupt > max_corrupt_fraction * images.num or extracted.num < 2:
        raise DataError(
            f"{extracted.num_corrupt} of {images.num} real images are corrupt, more than data.max_corrupt_fraction="
            f"{max_corrupt_fraction:g} allows: repair the shards"
        )
    if extracted.num_nonfinite:
        raise DataError(f"{extracted.num_nonfinite} real images have features of {extractor.name} that are not finite")
    features = extracted.features
    if features is None:  # not rank 0
        return None
    features.root = frechet.root(features.gaussian.cov)
    features.logits = None
    reference = Reference(features, origin, extracted.numbers, extracted.num_corrupt, extracted.num_gray)
    try:
        reference_stats.save(path, reference)
    except MachineError as error:
        log.warning(f"{error}; the next evaluation reads the real images again")
    return reference


def check_metrics(names: Sequence[str], extractor: Extractor, num: int, *, has_points: bool = True) -> None:
    """Raise ConfigError if a metric is not defined for `num` images, this extractor, or this reference."""
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
    check_stop: CheckStop = never_stop,
    with_errors: bool = False,
) -> Measurement:
    """Compare images with real ones; called by all ranks.

    Args:
        real: Statistics of the real images, on rank 0; ignored on other ranks.
        metrics: Names of METRICS that passed `check_metrics`.
        with_errors: Whether to compute standard errors that cost more than the value.
    """
    started = time.perf_counter()
    keeps = with_errors or any(METRICS[name].needs_points or METRICS[name].needs_logits for name in metrics)
    extracted = extract(world, extractor, images, images.num if keeps else 0, check_stop)

    def compute() -> tuple[Values, list[str]]:
        assert real is not None
        for name in metrics:
            if extracted.num < METRICS[name].least:
                raise DataError(f"eval.metrics={name} needs {METRICS[name].least} images at least, not {extracted.num}")
        values: Values = {}
        if extracted.num_nonfinite or extracted.features is None:
            values |= {value: (NAN, NAN) for name in metrics for value in METRICS[name].names}
        else:
            sides = real.features.to(world.device), extracted.features.to(world.device)
            for name in metrics:
                values |= METRICS[name].values(*sides, with_errors)
        return values, _warnings(real, extracted, extractor)

    values, warnings = world.run_on_main(compute)
    return Measurement(values, warnings, time.perf_counter() - started, extracted)


def _warnings(real: Reference, extracted: ExtractedFeatures, extractor: Extractor) -> list[str]:
    """Return what makes the values of an evaluation doubtful."""
    warnings, num, num_real = [], extracted.num, real.features.gaussian.num
    if extracted.num_nonfinite:
        warnings.append(f"{extracted.num_nonfinite} of {num} images have features that are not finite: no values")
    for side, num_of_side in (("generated", num), ("real", num_real)):
        if 0 < num_of_side <= extractor.dim:
            warnings.append(
                f"{num_of_side} {side} images for {extractor.dim} features: the Fréchet distance is mostly bias; "
                f"compare it only with values of the same number of images, and look at kid"
            )
    if extracted.num_corrupt:
        warnings.append(f"{extracted.num_corrupt} images are corrupt and left out")
    if extracted.num_gray == num and real.origin and real.num_gray < num_real / 2:
        warnings.append("all images are gray, and the real ones are not")
    if real.origin and real.num_gray == num_real and extracted.num_gray < num / 2:
        warnings.append("the real images are all gray, and these are not")
    return warnings
