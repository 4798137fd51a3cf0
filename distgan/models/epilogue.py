"""The epilogue of a discriminator, between its last feature map and its head: dropout and minibatch layers.

A minibatch layer looks at several images at once, so that D notices a generator that always makes the same image.
Images are compared within groups of consecutive ones. Ranks and passes cut the global batch into runs of consecutive
images, so the groups, and thus the update, are the same for any number of ranks if every pass holds whole groups.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distgan.rng import device_rng


class Epilogue(nn.Module):
    """Drop features and append those of a minibatch layer: [B, C, H, W] -> [B, C + extra, H, W].

    Args:
        channels, grid: C, and H and W.
        minibatch: "none", "stddev" or "discrimination".
        group: Images that are compared with one another; 0: all images of a pass.
        dropout: Fraction of features set to zero in training.

    Attributes:
        seeds: int64 [B], one for each image of the current pass; set by the caller of the network.
        tag: Name of the current pass; other names draw other features.
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], minibatch: str = "none", group: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.group, self.rate = group, dropout
        self.seeds: Tensor | None = None
        self.tag = ""
        kinds: dict[str, type[MinibatchStdDev | MinibatchDiscrimination] | None] = {
            "none": None,
            "stddev": MinibatchStdDev,
            "discrimination": MinibatchDiscrimination,
        }
        kind = kinds[minibatch]
        self.compare = kind(channels, grid) if kind else None
        self.extra = kind.extra if kind else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.rate and self.training and self.seeds is not None:
            x = self._drop(x, self.seeds)
        if self.compare is None:
            return x
        group = min(self.group or len(x), len(x))
        extra = self.compare(x.unflatten(0, (-1, group)))  # [groups, group, extra]
        return torch.cat([x, extra.flatten(0, 1)[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)

    def _drop(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Set features to zero by each image's seed and scale up the others (Srivastava et al. 2014)."""
        kept = device_rng.uniform(seeds, f"dropout {self.tag}", x[0].numel()).view_as(x) >= self.rate
        return x * kept / (1 - self.rate)


class MinibatchStdDev(nn.Module):
    """Mean standard deviation of a group's features (Karras et al. 2018, section 3); [N, G, C, H, W] -> [N, G, 1]."""

    extra = 1

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        deviation = (_full(x).var(dim=1, correction=0) + 1e-8).sqrt()  # of each feature, over the group
        return deviation.flatten(1).mean(1)[:, None, None].expand(-1, x.shape[1], -1).to(x.dtype)


class MinibatchDiscrimination(nn.Module):
    """Minibatch discrimination (Salimans et al. 2016, section 3.2); [N, G, C, H, W] -> [N, G, extra].

    It measures how close each image comes to the others of its group, in learned directions: o_b(i) = sum over j of
    exp(-|M_ib - M_jb|_1), where M_i = f(x_i) T. An image's closeness to itself, which is always 1, is left out.
    """

    extra, DIMS = 32, 8  # kernels, and numbers of each

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        num = channels * math.prod(grid)
        self.T = nn.Parameter(torch.randn(num, self.extra * self.DIMS) / math.sqrt(num))

    def forward(self, x: Tensor) -> Tensor:
        rows = _full(x.flatten(2) @ self.T.to(x.dtype)).unflatten(2, (self.extra, self.DIMS))  # [N, G, extra, DIMS]
        distance = (rows[:, :, None] - rows[:, None]).abs().sum(4)  # [N, G, G, extra]
        others = 1 - torch.eye(x.shape[1], device=x.device, dtype=distance.dtype)
        return (torch.exp(-distance) * others[:, :, None]).sum(2).to(x.dtype)


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.bfloat16 else x


MakeEpilogue = Callable[[int, tuple[int, int]], Epilogue]  # (C, (H, W)) of the last feature map -> the epilogue
