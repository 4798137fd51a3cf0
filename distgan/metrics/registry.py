"""The metrics: pure functions of features that were computed once.

`METRICS` is the list; a config names its entries in `eval.metrics`, and `names.EVAL_METRICS` has the direction of each.
The names of the values say whether they compare with published ones: see `value_name`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distgan.metrics import frechet, inception_score, kid, precision_recall
from distgan.metrics.extractors import Extractor
from distgan.metrics.frechet import Gaussian
from distgan.metrics.names import Direction
from distgan.metrics.weights import WEIGHTS
from distgan.rng import host_rng

MOST_NEIGHBORS = 10_000  # images of each side for precision, recall, density and coverage


@dataclass
class Features:
    """Features of one set of images.

    Attributes:
        gaussian: Mean and covariance over all images.
        points: Features of all images, or of a random part of them; float32 [n, d], empty if only the Gaussian is
            available.
        logits: Logits of the images of `points`, [n, classes]; None if the extractor has none.
        labels: Labels of the images of `points`, int64 [n]; None if they have none.
        root: Square root of the covariance, for real images.
    """

    gaussian: Gaussian
    points: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None
    root: Tensor | None = None

    def to(self, device: torch.device) -> "Features":
        """Return the same with points, logits and labels on a device; Gaussian and root stay on the CPU."""
        logits, labels = (None if x is None else x.to(device) for x in (self.logits, self.labels))
        return Features(self.gaussian, self.points.to(device), logits, labels, self.root)


Values = dict[str, tuple[float, float]]  # name -> value, and its standard error or NaN
NAN = float("nan")


class Metric(NamedTuple):
    """One entry of METRICS.

    Attributes:
        values: (real, fake, with_errors) -> values. Errors that cost more than the value are NaN unless asked for.
        names: Names of the values.
        needs_points: Whether the features of real images are needed, not only their Gaussian.
        needs_logits: Whether the extractor must be a classifier.
        least: Smallest number of images of each side for which the metric is defined.
        direction: Whether a lower or a higher value is better; "" where it should not choose the best checkpoint.
    """

    values: Callable[[Features, Features, bool], Values]
    names: tuple[str, ...]
    needs_points: bool = True
    needs_logits: bool = False
    least: int = 2
    direction: Direction = "lower"


def _frechet(real: Features, fake: Features, with_errors: bool) -> Values:
    assert real.root is not None
    value = frechet.distance(real.gaussian, fake.gaussian, real.root)
    can = with_errors and len(fake.points) == fake.gaussian.num >= 3 * frechet.BLOCKS
    return {"fd": (value, frechet.jackknife(real.gaussian, fake.points, real.root) if can else NAN)}


def _kid(real: Features, fake: Features, with_errors: bool) -> Values:
    mean, deviation, _ = kid.subsets(real.points, fake.points)
    return {"kid": (mean, NAN), "kid_subset_std": (deviation, NAN)}


def _kid_full(real: Features, fake: Features, with_errors: bool) -> Values:
    return {"kid_full": kid.full(real.points, fake.points)}


def _inception_score(real: Features, fake: Features, with_errors: bool) -> Values:
    assert fake.logits is not None
    mean, deviation = inception_score.score(fake.logits)
    return {"is": (mean, NAN), "is_split_std": (deviation, NAN)}


def _precision_recall(real: Features, fake: Features, with_errors: bool) -> Values:
    pair = precision_recall.precision_recall(_some(real.points), _some(fake.points), 3)
    return dict(zip(METRICS["pr"].names, pair))


def _density_coverage(real: Features, fake: Features, with_errors: bool) -> Values:
    pair = precision_recall.density_coverage(_some(real.points), _some(fake.points), 5)
    return dict(zip(METRICS["dc"].names, pair))


def _some(points: Tensor) -> Tensor:
    """Return at most MOST_NEIGHBORS features, chosen by a fixed shuffle: data sets are often sorted by class."""
    if len(points) <= MOST_NEIGHBORS:
        return points
    chosen = host_rng.permutation(host_rng.key(0, "neighbours"), len(points))[:MOST_NEIGHBORS]
    return points[torch.from_numpy(chosen).to(points.device)]


METRICS: dict[str, Metric] = {
    "fd": Metric(_frechet, ("fd",), needs_points=False),
    "kid": Metric(_kid, ("kid", "kid_subset_std")),
    "kid_full": Metric(_kid_full, ("kid_full",)),
    "is": Metric(
        _inception_score, ("is", "is_split_std"), needs_points=False, needs_logits=True, least=10, direction="higher"
    ),
    "pr": Metric(_precision_recall, ("precision_k3", "recall_k3"), least=4, direction=""),
    "dc": Metric(_density_coverage, ("density_k5", "coverage_k5"), least=6, direction=""),
}


def value_name(name: str, extractor: Extractor, num: int, whole: bool) -> str:
    """Return the log key of value `name` of METRICS: "fid50k_full", "fd_toy_500", "kid_efficientnet_lite0_10k_full".

    Args:
        num: Number of generated images.
        whole: Whether they were compared with all images of the data set.

    Raises:
        ValueError: The key would be that of FID, but the network is another one.
    """
    size = (f"{num // 1000}k" if num % 1000 == 0 else str(num)) + ("_full" if whole else "")
    if extractor.key_prefix == "fid":
        if extractor.name != "inception" or WEIGHTS["inception"].sha256[:12] not in extractor.identity:
            raise ValueError(f"{extractor.identity} is not the Inception network that FID is defined by")
        return f"fid{size}" if name == "fd" else f"{name}_inception_{size}"
    return f"{name}_{extractor.key_prefix.removeprefix('fd_')}_{size}"
