"""Kernel distance (KID; Binkowski et al. 2018): the unbiased squared MMD with the kernel (x.y / d + 1)^3."""

import numpy as np
import torch
from torch import Tensor

TILE = 4096
BLOCKS = 10  # of the jackknife


def subsets(
    real: Tensor, fake: Tensor, *, num: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float, int]:
    """Return the mean over pairs of random subsets, the usual form of KID; features [n, d] and [m, d].

    The subsets are those that torch-fidelity draws from this seed in its usual order, input1 being the fakes: of each
    pair, the subset of the fakes is drawn first.

    Returns:
        The mean, the standard deviation over subsets (not a standard error of the mean), and the size of a subset,
        which is smaller than `size` if there are fewer images.
    """
    size = min(size, len(real), len(fake))
    _require_two(size)
    draw, distances = np.random.RandomState(seed), []
    for _ in range(num):
        indices = (draw.choice(len(points), size, replace=False) for points in (fake, real))
        x, y = (points[torch.from_numpy(chosen).to(points.device)] for points, chosen in zip((fake, real), indices))
        within = (_sum(x, x) - _diagonal(x) + _sum(y, y) - _diagonal(y)) / (size * (size - 1))
        distances.append(within - 2 * _sum(x, y) / size**2)
    values = torch.stack(distances).cpu().numpy()
    return float(np.mean(values)), float(np.std(values)), size


def full(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Return the distance over all pairs of images, and its standard error: delete-one over blocks of the fakes."""
    _require_two(min(len(real), len(fake)))
    num_blocks = BLOCKS if len(fake) >= 3 * BLOCKS else 1
    blocks = [fake[i::num_blocks] for i in range(num_blocks)]
    within = np.zeros((num_blocks, num_blocks))
    for i, block in enumerate(blocks):
        for j, other in enumerate(blocks[:i]):
            within[i, j] = within[j, i] = float(_sum(block, other))
        within[i, i] = float(_sum(block, block) - _diagonal(block))
    across = np.array([float(_sum(block, real)) for block in blocks])
    n = len(real)
    within_real = float(_sum(real, real) - _diagonal(real)) / (n * (n - 1))

    def mmd(kept: np.ndarray, m: int) -> float:
        return within_real + within[np.ix_(kept, kept)].sum() / (m * (m - 1)) - 2 * across[kept].sum() / (m * n)

    numbers = np.arange(num_blocks)
    value = mmd(numbers, len(fake))
    if num_blocks == 1:
        return float(value), float("nan")
    without = np.array([mmd(np.delete(numbers, i), len(fake) - len(blocks[i])) for i in numbers])
    return float(value), float(np.sqrt((num_blocks - 1) / num_blocks * ((without - without.mean()) ** 2).sum()))


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the kernel over all pairs, computed tile by tile; float64, on the device of the features."""
    total = x.new_zeros((), dtype=torch.float64)
    for a in x.split(TILE):
        a = a.double() / x.shape[1]
        for b in y.split(TILE):
            total += (a @ b.double().T).add_(1).pow_(3).sum()
    return total


def _diagonal(x: Tensor) -> Tensor:
    """Return the sum of the kernel of each image with itself; float64, on the device of the features."""
    total = x.new_zeros((), dtype=torch.float64)
    for part in x.split(TILE):
        total += (part.double().square().sum(dim=1) / x.shape[1] + 1).pow(3).sum()
    return total


def _require_two(num: int) -> None:
    if num < 2:
        raise ValueError(f"a kernel distance needs 2 images on each side at least, not {num}")
