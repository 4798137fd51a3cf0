"""`distgan evaluate --self-test`: compare values computed on this machine with published ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.config.schema import Config
from distgan.data.dataset import Dataset
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, DataError, DistganError
from distgan.evaluation.image_sets import Images, ShardImages
from distgan.evaluation.measure import extract
from distgan.evaluation.reference import open_shards, shard_images
from distgan.image_spec import square
from distgan.metrics import frechet, inception_score, precision_recall
from distgan.metrics import kid as kernel
from distgan.metrics.extractors import Extractor, open_extractor
from distgan.metrics.frechet import Moments
from distgan.metrics.registry import Features
from distgan.storage import formatting

NUM_CIFAR = {"train": 50_000, "test": 10_000}
NUM_DRAWN = 5000  # images of each set in the comparison


class Line(NamedTuple):
    """A published value and the one computed here.

    Attributes:
        computed: The value computed here; NaN if that was not possible.
        tolerance: Largest difference allowed.
        why_not: Why it was not computed.
    """

    name: str
    expected: float
    computed: float
    tolerance: float
    why_not: str = ""

    @property
    def holds(self) -> bool:
        """Return whether the two agree."""
        return abs(self.computed - self.expected) <= self.tolerance


class Part:
    """Some images of a set, in another order; image i is image `chosen[i]` of the set."""

    reads_files = True

    def __init__(self, images: ShardImages, chosen: np.ndarray) -> None:
        self.num, self.image = len(chosen), images.image
        self._images, self._chosen = images, chosen

    def read(self, numbers: np.ndarray) -> Images:
        """Read images by their numbers."""
        images = self._images.read(self._chosen[numbers])
        return Images(numbers, images.pixels, images.labels)


def selfcheck(world: World, config: Config) -> list[Line]:
    """Check the arithmetic of metrics, and FID on CIFAR-10 if its images and Inception's weights are there.

    Args:
        config: data.shards are CIFAR-10's training images and eval.reference its test images, in the order of the
            published files, since the published values are of images drawn by their numbers.
    """
    return [*_arithmetic(), *_inception_on_cifar10(world, config)]


def features(num: int, seed: int, shift: float = 0.0, dim: int = 24) -> Tensor:
    """Return skewed, correlated random numbers that resemble features; float32 [num, dim]."""
    mix = np.random.RandomState(7).standard_normal((dim, dim)) / dim**0.5
    normal = np.random.RandomState(seed).standard_normal((num, dim))
    return torch.from_numpy(np.abs(normal @ mix + shift).astype(np.float32))


def _arithmetic() -> list[Line]:
    """Compare with values of torch-fidelity 0.4.0 and prdc 0.2 on the same numbers, in float64."""
    real, fake = features(600, 2), features(500, 6, 0.1)
    logits = torch.from_numpy((np.random.RandomState(9).standard_normal((997, 12)) * 2).astype(np.float32))
    gaussian = Moments.of(real).gaussian()
    fd = frechet.distance(gaussian, Moments.of(fake).gaussian(), frechet.root(gaussian.cov))
    kid, _, _ = kernel.subsets(real, fake, num=20, size=300)
    precision, recall = precision_recall.precision_recall(real, fake)
    density, coverage = precision_recall.density_coverage(real, fake)
    return [
        Line("Fréchet distance, arithmetic", 0.23204682595799042, fd, 1e-11),
        Line("KID, arithmetic", 0.0026353519994035, kid, 1e-11),
        Line("Inception Score, arithmetic", 2.7759111975078357, inception_score.score(logits)[0], 1e-9),
        Line("precision, k=3, arithmetic", 411 / 500, precision[0], 1e-9),
        Line("recall, k=3, arithmetic", 494 / 600, recall[0], 1e-9),
        Line("density, k=5, arithmetic", 0.9448, density[0], 1e-9),
        Line("coverage, k=5, arithmetic", 0.925, coverage[0], 1e-9),
    ]


def _inception_on_cifar10(world: World, config: Config) -> list[Line]:
    """Compare 5000 training images with 5000 test images, as torch-fidelity's own tests do; and IS of all 50,000."""
    expected = {  # value, and tolerance for differences of machines and versions
        "FID, 5000 + 5000 of CIFAR-10": (10.32333, 1e-3),
        "KID, 5000 + 5000 of CIFAR-10": (-2.907863e-05, 1e-6),
        "Inception Score, 5000 of CIFAR-10": (10.75051, 1e-3),
        "Inception Score, CIFAR-10 training set": (11.23678, 1e-2),
    }

    def without(why: str) -> list[Line]:
        return [Line(name, value, float("nan"), tolerance, why) for name, (value, tolerance) in expected.items()]

    if not config.data.shards or not config.eval.reference:
        return without("name CIFAR-10: data.shards=TRAIN eval.reference=TEST")
    try:
        extractor = open_extractor("inception", config.eval.weights, "", world.device, config.eval.download)
    except (ConfigError, DataError) as error:
        return without(str(error))
    sets = {}
    for name, shards in (("train", config.data.shards), ("test", config.eval.reference)):
        try:
            sets[name] = _cifar10(open_shards(config, shards, 0, world), name)
        except DistganError as error:
            return without(str(error))
    images = {name: shard_images(config, dataset, square(32), world) for name, dataset in sets.items()}
    values = _values(world, extractor, images)
    return [Line(name, value, values[name], tolerance) for name, (value, tolerance) in expected.items()]


def _cifar10(dataset: Dataset, name: str) -> Dataset:
    """Return a data set that has as many images as CIFAR-10. Raises DataError for others."""
    if dataset.num_samples != NUM_CIFAR[name]:
        raise DataError(f"CIFAR-10's {name} set has {NUM_CIFAR[name]:,} images, these shards {dataset.num_samples:,}")
    return dataset


def _values(world: World, extractor: Extractor, images: dict[str, ShardImages]) -> dict[str, float]:
    """Return the four values on all ranks."""

    def some(name: str) -> Features | None:
        chosen = np.random.RandomState(2020).choice(images[name].num, NUM_DRAWN, replace=False)
        return extract(world, extractor, Part(images[name], chosen), NUM_DRAWN).features

    train, test = some("train"), some("test")
    whole = extract(world, extractor, images["train"], images["train"].num).features

    def compute() -> dict[str, float]:
        assert train is not None and test is not None and whole is not None  # on rank 0
        assert train.logits is not None and whole.logits is not None  # of Inception
        real = test.gaussian
        return {
            "FID, 5000 + 5000 of CIFAR-10": frechet.distance(real, train.gaussian, frechet.root(real.cov)),
            "KID, 5000 + 5000 of CIFAR-10": kernel.subsets(test.points, train.points)[0],  # drawn for train first
            "Inception Score, 5000 of CIFAR-10": inception_score.score(train.logits)[0],
            "Inception Score, CIFAR-10 training set": inception_score.score(whole.logits)[0],
        }

    return world.run_on_main(compute)


def table(lines: Sequence[Line]) -> list[str]:
    """Return the values side by side as human-readable lines."""
    rows = [("", "published", "here", "")]
    for line in lines:
        here = "not computed" if line.why_not else f"{line.computed:.10g}"
        rows.append((line.name, f"{line.expected:.10g}", here, line.why_not or ("agrees" if line.holds else "DIFFERS")))
    return formatting.table(rows, "<>>")
