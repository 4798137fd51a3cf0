"""Features -> mean and covariance, in sums that are additive over batches, ranks and blocks."""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Mean float64 [d] and covariance float64 [d, d] of the features of `num` images."""

    num: int
    mean: Tensor
    cov: Tensor


class Moments:
    """Number, sum and sum of outer products of feature vectors, in float64.

    They lie in one buffer, `sums`, so that one all-reduce merges the ranks. Raw sums are enough: the covariance differs
    from that of a single pass by about 1e-13, in relation.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(1 + dim + dim * dim, dtype=torch.float64, device=device)
        self._num, self._total, outer = self.sums.split([1, dim, dim * dim])
        self._outer = outer.view(dim, dim)

    @classmethod
    def of(cls, points: Tensor) -> "Moments":
        """The moments of feature vectors [n, d]."""
        moments = cls(points.shape[1], points.device)
        for part in points.split(8192):
            moments.add(part)
        return moments

    def add(self, points: Tensor) -> None:
        """Take feature vectors [n, d] in."""
        x = points.to(self.sums.device, torch.float64)
        self._num += len(x)
        self._total += x.sum(dim=0)
        self._outer.addmm_(x.T, x)

    @property
    def num(self) -> int:
        return int(self._num)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance, on the CPU. Needs two images at least."""
        num = self.num
        if num < 2:
            raise ValueError(f"a covariance needs 2 images at least, not {num}")
        total, outer = self._total.cpu(), self._outer.cpu()
        mean = total / num
        return Gaussian(num, mean, (outer - torch.outer(mean, total)) / (num - 1))
