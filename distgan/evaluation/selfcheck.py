"""`distgan evaluate --self-test`: values that others published, next to those that this machine computes."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from distgan.metrics import frechet, inception_score, precision_recall
from distgan.metrics import kid as kernel
from distgan.metrics.extractors import Extractor, open_extractor
from distgan.metrics.frechet import Moments
from distgan.metrics.registry import Features
from distgan.storage import formatting

NUM_CIFAR = {"train": 50_000, "test": 10_000}
NUM_DRAWN = 5000


class Line(NamedTuple):
    """What is expected, what was found (NaN where it could not be computed), and how far they may differ."""

    name: str
    expected: float
    found: float
    tolerance: float
    why_not: str = ""

    @property
    def holds(self) -> bool:
        return abs(self.found - self.expected) <= self.tolerance


@dataclass
class Part:
    """Some images of a set, in an order of their own."""

    images: ShardImages
    chosen: np.ndarray
    reads_files: bool = True

    @property
    def num(self) -> int:
        return len(self.chosen)

    def read(self, numbers: np.ndarray) -> Images:
        found = self.images.read(self.chosen[numbers])
        return Images(numbers, found.pixels, found.labels)


def selfcheck(world: World, config: Config) -> list[Line]:
    """All that can be checked here: the arithmetic always, networks where their weights lie, data where it is named.

    Args:
        config: data.shards are CIFAR-10's training images and eval.reference its test images, for the last part; in the
            order of the published files, since the published values are of images drawn by their numbers.
    """
    return [*_arithmetic(), *_inception_on_cifar10(world, config)]


def features(num: int, seed: int, shift: float = 0.0, dim: int = 24) -> Tensor:
    """Skewed, correlated numbers, as features are; float32 [num, dim]."""
    mix = np.random.RandomState(7).standard_normal((dim, dim)) / dim**0.5
    drawn = np.random.RandomState(seed).standard_normal((num, dim))
    return torch.from_numpy(np.abs(drawn @ mix + shift).astype(np.float32))


def _arithmetic() -> list[Line]:
    """Values of torch-fidelity 0.4.0 and prdc 0.2 on the same numbers, in float64."""
    real, fake = features(600, 2), features(500, 6, 0.1)
    logits = torch.from_numpy((np.random.RandomState(9).standard_normal((997, 12)) * 2).astype(np.float32))
    known = Moments.of(real).gaussian()
    fd = frechet.distance(known, Moments.of(fake).gaussian(), frechet.root(known.cov))
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
    """5000 training images against 5000 test images, which torch-fidelity's own tests draw; and IS of all 50,000."""
    expected = {  # value, tolerance: what machines and versions differ by
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
    images = {name: shard_images(config, dataset, 32, world) for name, dataset in sets.items()}
    found = _values(world, extractor, images)
    return [Line(name, *pair[:1], found[name], pair[1]) for name, pair in expected.items()]


def _cifar10(dataset: Dataset, name: str) -> Dataset:
    if dataset.num_samples != NUM_CIFAR[name]:
        raise DataError(f"CIFAR-10's {name} set has {NUM_CIFAR[name]:,} images, these shards {dataset.num_samples:,}")
    return dataset


def _values(world: World, extractor: Extractor, images: dict[str, ShardImages]) -> dict[str, float]:
    """The four values, on all ranks."""

    def drawn(name: str) -> Features | None:
        chosen = np.random.RandomState(2020).choice(images[name].num, NUM_DRAWN, replace=False)
        return extract(world, extractor, Part(images[name], chosen), NUM_DRAWN, _no_poll).features

    train, test = drawn("train"), drawn("test")
    whole = extract(world, extractor, images["train"], images["train"].num, _no_poll).features

    def compute() -> dict[str, float]:
        known = test.gaussian
        return {
            "FID, 5000 + 5000 of CIFAR-10": frechet.distance(known, train.gaussian, frechet.root(known.cov)),
            "KID, 5000 + 5000 of CIFAR-10": kernel.subsets(test.points, train.points)[0],  # drawn for train first
            "Inception Score, 5000 of CIFAR-10": inception_score.score(train.logits)[0],
            "Inception Score, CIFAR-10 training set": inception_score.score(whole.logits)[0],
        }

    return world.on_main(compute)


def _no_poll() -> None:
    """Nobody waits for it."""


def table(lines: Sequence[Line]) -> list[str]:
    """Side by side, for a person."""
    rows = [("", "published", "here", "")]
    for line in lines:
        here = "not computed" if line.why_not else f"{line.found:.10g}"
        rows.append((line.name, f"{line.expected:.10g}", here, line.why_not or ("agrees" if line.holds else "DIFFERS")))
    return formatting.table(rows, "<>>")
