"""Precision, recall, density and coverage, by distances to nearest neighbors in feature space.

Features are [n, d]; distances are float64, computed tile by tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 1024
NOISE = 1e-12  # squared distances below this share of the squared lengths count as zero

Share = tuple[float, float]  # a mean over images, and its standard error


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Share, Share]:
    """Return the share of fakes within a ball of some real image, and the reverse (Kynkaanniemi et al. 2019).

    The ball of an image reaches to its k-th nearest neighbor within its own set, and includes that distance.
    """
    reach_real, reach_fake = reach(real, k), reach(fake, k)
    precise = [(part <= reach_real).any(dim=1) for part in _tiles(fake, real)]
    recalled = [(part <= reach_fake).any(dim=1) for part in _tiles(real, fake)]
    return _mean(precise), _mean(recalled)


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[Share, Share]:
    """Return the mean number of real balls around a fake, over k, and the share of real balls with a fake.

    Naeem et al. 2020. Here a ball does not include its border. For equal distributions, the density is 1 and the
    coverage 1 - 2^-k.
    """
    reach_real = reach(real, k)
    hits = [(part < reach_real).sum(dim=1).double() / k for part in _tiles(fake, real)]
    radii = reach_real.split(TILE)
    covered = [part.min(dim=1).values < radius for part, radius in zip(_tiles(real, fake), radii)]
    return _mean(hits), _mean(covered)


def reach(points: Tensor, k: int) -> Tensor:
    """Return the squared distance of each image to its k-th nearest neighbor among the others; float64 [n]."""
    if len(points) <= k:
        raise ValueError(f"{k} neighbors need {k + 1} images at least, not {len(points)}")
    # The image itself comes first, with distance 0.
    # `kthvalue` has no deterministic kernel on a GPU, and train.deterministic=strict would end the run there.
    return torch.cat([part.topk(k + 1, dim=1, largest=False).values[:, -1] for part in _tiles(points, points)])


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each of `points` to the nearest of `others`, float64 [n], and its index, int64 [n]."""
    minima = [part.min(dim=1) for part in _tiles(points, others)]
    return torch.cat([tile.values for tile in minima]).sqrt(), torch.cat([tile.indices for tile in minima])


def _tiles(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield squared distances of some of `points` at a time to all `others`; float64 [<= TILE, m]."""
    y = others.double()
    y_squares = y.square().sum(dim=1)
    for part in points.split(TILE):
        x = part.double()
        lengths = x.square().sum(dim=1, keepdim=True) + y_squares
        distances = torch.addmm(lengths, x, y.T, alpha=-2)
        # Copies of one image have distance 0 in spite of rounding.
        yield distances.masked_fill_(distances < NOISE * lengths, 0)


def _mean(parts: list[Tensor]) -> Share:
    values = torch.cat(parts).double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
