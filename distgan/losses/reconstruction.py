"""Reconstruction losses: distances between images, and between D's features of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor], group: int = 0) -> Tensor:
    """Return the distance of fakes from real images in the mean of D's features (Salimans et al. 2016, section 3.1).

    That is ||E f(x) - E f(G(z))||^2, the mean over a layer's features instead of the sum, averaged over the layers. The
    expectations are over groups of consecutive images, which do not depend on how a batch is spread over ranks.

    Args:
        real, fake: Features of some layers, [B, ...] each.
        group: Images in a group; 0 for the whole batch.
    """
    size = group or len(real[0])
    distances = []
    for r, f in zip(real, fake):
        difference = (r - f).unflatten(0, (-1, size))
        mean = difference.mean(1, dtype=torch.float32 if difference.dtype is torch.bfloat16 else None)
        distances.append(mean.square().mean())
    return torch.stack(distances).mean()


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean absolute error; of the three losses it blurs least."""
    return (restored - clean).abs().mean()


def l2(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean squared error; its minimum has the best PSNR."""
    return (restored - clean).square().mean()


def charbonnier(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean of sqrt(d^2 + 0.001^2), a smooth `l1` (Charbonnier et al. 1994; constant of Lai et al. 2017)."""
    return ((restored - clean).square() + 1e-6).sqrt().mean()


PIXEL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, "charbonnier": charbonnier}
