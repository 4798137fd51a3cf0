"""Distances of images, and of their features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor], group: int = 0) -> Tensor:
    """How far fakes are from real images in the mean of D's features (Salimans et al. 2016, section 3.1).

    ||E f(x) - E f(G(z))||^2, as the mean over a layer's features instead of the sum, averaged over the layers. The
    expectations are over groups of consecutive images, which do not depend on how a batch is spread over ranks.

    Args:
        real, fake: Features of some layers, [B, ...] each.
        group: Images in a group; 0 for all that are given.
    """
    size = group or len(real[0])
    distances = []
    for r, f in zip(real, fake):
        difference = (r - f).unflatten(0, (-1, size))
        mean = difference.mean(1, dtype=torch.float32 if difference.dtype is torch.bfloat16 else None)
        distances.append(mean.square().mean())
    return torch.stack(distances).mean()


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """The mean difference of a channel of a pixel; of the three it blurs least."""
    return (restored - clean).abs().mean()


def l2(restored: Tensor, clean: Tensor) -> Tensor:
    """The mean square, whose least value has the best PSNR."""
    return (restored - clean).square().mean()


def charbonnier(restored: Tensor, clean: Tensor) -> Tensor:
    """sqrt(d^2 + 0.001^2), `l1` with a round tip (Charbonnier et al. 1994, with the constant of Lai et al. 2017)."""
    return ((restored - clean).square() + 1e-6).sqrt().mean()


PIXEL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, "charbonnier": charbonnier}
