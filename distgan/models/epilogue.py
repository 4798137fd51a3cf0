"""What any discriminator may have between its last feature map and its head: dropout, and layers that look at several
images at once, so that D sees a generator that makes the same image again and again.

Images are compared within groups of consecutive ones. Ranks and passes cut the global batch into runs of consecutive
images, so the groups, and thus the update, are the same for every number of ranks as long as a pass holds whole groups.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distgan.rng import device_rng


class Tail(nn.Module):
    """[B, C, H, W] -> [B, C + extra, H, W].

    Args:
        channels, side: C, and H = W.
        minibatch: "none", "stddev" or "discrimination".
        group: Images that are compared with one another; 0: all of a pass.
        dropout: Share of features set to zero while training.
    """

    def __init__(self, channels: int, side: int, minibatch: str = "none", group: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.group, self.rate = group, dropout
        self.seeds: Tensor | None = None  # of the images at hand: whoever calls the network says which these are
        self.look = ""
        kinds = {"none": None, "stddev": StandardDeviation, "discrimination": Discrimination}
        kind = kinds[minibatch]
        self.compare = kind(channels, side) if kind else None
        self.extra = self.compare.extra if kind else 0

    def forward(self, x: Tensor) -> Tensor:
        if self.rate and self.training and self.seeds is not None:
            x = self._dropped(x)
        if self.compare is None:
            return x
        group = min(self.group or len(x), len(x))
        told = self.compare(x.unflatten(0, (-1, group)))  # [groups, group, extra]
        return torch.cat([x, told.flatten(0, 1)[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)

    def _dropped(self, x: Tensor) -> Tensor:
        """Srivastava et al. 2014, with the rest scaled up; which features, is a function of each image's seed."""
        kept = device_rng.uniform(self.seeds, f"dropout {self.look}", x[0].numel()).view_as(x) >= self.rate
        return x * kept / (1 - self.rate)


class StandardDeviation(nn.Module):
    """How much a group's features differ: one number (Karras et al. 2018, section 3); [N, G, C, H, W] -> [N, G, 1]."""

    extra = 1

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        deviation = (_full(x).var(dim=1, correction=0) + 1e-8).sqrt()  # of each feature, over the group
        return deviation.flatten(1).mean(1)[:, None, None].expand(-1, x.shape[1], -1).to(x.dtype)


class Discrimination(nn.Module):
    """How close each image comes to the others of its group, in learned directions; [N, G, C, H, W] -> [N, G, extra].

    Salimans et al. 2016, section 3.2: o_b(i) = sum over j of exp(-|M_ib - M_jb|_1), where M_i = f(x_i) T. An image's
    closeness to itself, which is 1 always, is left out.
    """

    extra, DIMS = 32, 8  # kernels, and numbers of each

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        num = channels * side * side
        self.T = nn.Parameter(torch.randn(num, self.extra * self.DIMS) / math.sqrt(num))

    def forward(self, x: Tensor) -> Tensor:
        rows = _full(x.flatten(2) @ self.T.to(x.dtype)).unflatten(2, (self.extra, self.DIMS))  # [N, G, extra, DIMS]
        distance = (rows[:, :, None] - rows[:, None]).abs().sum(4)  # [N, G, G, extra]
        others = 1 - torch.eye(x.shape[1], device=x.device, dtype=distance.dtype)
        return (torch.exp(-distance) * others[:, :, None]).sum(2).to(x.dtype)


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.bfloat16 else x


MakeTail = Callable[[int, int], Tail]  # (channels, side) of the last feature map -> the tail
