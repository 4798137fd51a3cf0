"""Double and halve the sides of images, and blur them, by the filter [1, 3, 3, 1] in both directions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.models.grouped_conv import Geometry, grouped_conv2d


class Upsample(nn.Module):
    """Double the sides of [B, C, H, W] with the filter [1, 3, 3, 1] / 4 in both directions and zeros beyond the border.

    The authors' [1, 2, 1] convolved with [1, 1]. Its length is even, so it is centered between pixels: images do not
    move, and a mirrored input gives the mirrored output. Away from the border this is bilinear interpolation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filter", _filter(channels, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("filter").to(x.dtype)
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=len(weight))


class Downsample(nn.Module):
    """Halve the sides of [B, C, H, W] with the filter [1, 3, 3, 1] / 8 in both directions and zeros beyond the border.

    A quarter of the transpose of `Upsample`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filter", _filter(channels, 8), persistent=False)
        self._geometry = Geometry((2, 2), (1, 1), (1, 1), channels)

    def forward(self, x: Tensor) -> Tensor:
        return grouped_conv2d(x, self.get_buffer("filter").to(x.dtype), None, self._geometry)


class Blur(nn.Module):
    """Convolve each channel with gain / 64 times the outer product of [1, 3, 3, 1], with zeros beyond the border.

    With `padding` zeros around, sides grow by 2 padding - 3.
    """

    def __init__(self, channels: int, padding: int, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("filter", gain * _filter(channels, 8), persistent=False)
        self._geometry = Geometry((1, 1), (padding, padding), (1, 1), channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("filter").to(x.dtype)
        if not torch.is_grad_enabled() or torch.jit.is_tracing():  # a traced file has no use for gradients of ours
            return F.conv2d(x, weight, None, *self._geometry)
        return grouped_conv2d(x, weight, None, self._geometry)


def _filter(channels: int, divisor: int) -> Tensor:
    """Return [1, 3, 3, 1] / divisor in both directions, for each channel by itself; [C, 1, 4, 4]."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / divisor
    return torch.outer(row, row).expand(channels, 1, 4, 4).contiguous()
