"""Fréchet distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017 for images).

    |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^1/2)

The last trace is that of (H S2 H)^1/2 with H = S1^1/2. So it needs eigenvalues of symmetric matrices only, and H is
computed once for a set of real images.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCKS = 10  # of the jackknife


class Gaussian(NamedTuple):
    """Mean float64 [d] and covariance float64 [d, d] of the features of `num` images."""

    num: int
    mean: Tensor
    cov: Tensor


class Moments:
    """Number, sum and sum of outer products of feature vectors, in float64.

    They are in one buffer, `sums`, so that one all-reduce merges the ranks. Raw sums are enough: the covariance differs
    from that of a single pass by about 1e-13, relative.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(1 + dim + dim * dim, dtype=torch.float64, device=device)
        self._num, self._total, outer = self.sums.split([1, dim, dim * dim])
        self._outer = outer.view(dim, dim)

    @classmethod
    def of(cls, points: Tensor) -> "Moments":
        """Return the moments of feature vectors [n, d]."""
        moments = cls(points.shape[1], points.device)
        for part in points.split(8192):
            moments.add(part)
        return moments

    def add(self, points: Tensor) -> None:
        """Add feature vectors [n, d]."""
        x = points.to(self.sums.device, torch.float64)
        self._num += len(x)
        self._total += x.sum(dim=0)
        self._outer.addmm_(x.T, x)

    @property
    def num(self) -> int:
        """Number of feature vectors."""
        return int(self._num)

    def gaussian(self) -> Gaussian:
        """Return mean and unbiased covariance, on the CPU. Raises ValueError for fewer than two images."""
        num = self.num
        if num < 2:
            raise ValueError(f"a covariance needs 2 images at least, not {num}")
        total, outer = self._total.cpu(), self._outer.cpu()
        mean = total / num
        return Gaussian(num, mean, (outer - torch.outer(mean, total)) / (num - 1))


def root(cov: Tensor) -> Tensor:
    """Return the symmetric square root of a covariance, float64 [d, d]."""
    _require_float64(cov)
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * _without_noise(values).sqrt()) @ vectors.T


def distance(real: Gaussian, fake: Gaussian, real_root: Tensor) -> float:
    """Return the Fréchet distance, NaN if features are not finite; `real_root` is `root(real.cov)`."""
    if not (fake.cov.isfinite().all() and real.cov.isfinite().all()):
        return float("nan")
    _require_float64(real.cov, fake.cov, real_root)
    values = torch.linalg.eigvalsh(real_root @ fake.cov @ real_root)
    traces = real.cov.trace() + fake.cov.trace()
    value = (real.mean - fake.mean).square().sum() + traces - 2 * _without_noise(values).sqrt().sum()
    is_rounding = -1e-6 * traces < value < 0
    return 0.0 if is_rounding else float(value)


def jackknife(real: Gaussian, points: Tensor, real_root: Tensor) -> float:
    """Return the standard error of the distance to images with features [n, d]: delete-one, in blocks of a tenth each.

    A bootstrap is not possible: drawing images twice raises the distance by far more than its error.
    """
    parts = [Moments.of(points[block::BLOCKS]) for block in range(BLOCKS)]
    whole = torch.stack([part.sums for part in parts]).sum(dim=0)
    distances = []
    for part in parts:
        part.sums.copy_(whole - part.sums)
        distances.append(distance(real, part.gaussian(), real_root))
    values = torch.tensor(distances, dtype=torch.float64)
    return float(((BLOCKS - 1) / BLOCKS * (values - values.mean()).square().sum()).sqrt())


def _without_noise(values: Tensor) -> Tensor:
    """Set eigenvalues to zero that differ from it by rounding only.

    With fewer images than features, the roots of many such values would add up to a visible error.
    """
    bound = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return torch.where(values > bound, values, 0)


def _require_float64(*matrices: Tensor) -> None:
    if any(matrix.dtype != torch.float64 for matrix in matrices):
        raise TypeError("a Fréchet distance in less than float64 is wrong by a percent where images are few")
