"""Resize images to the size that a feature network was trained with; float32 [B, C, H, W] in 0..255.

Values of two resizers do not compare: FID of the same images differs by up to a quarter (Parmar et al. 2022). So real
and generated images go through the same one, and its name is part of a metric's name.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1's `resize_bilinear`: pixel i is read at i * scale, without half-pixel offset or filter.

    The network of 2015 contains this resizing, so FID is defined by it (Heusel et al. 2017). Every step is in float32,
    in TensorFlow's order.
    """
    rows, columns = (_tf1_places(side, size, images.device) for side in images.shape[2:])
    upper, lower = images[:, :, rows[0]], images[:, :, rows[1]]
    right, down = columns[2], rows[2][:, None]
    top = upper[..., columns[0]] + (upper[..., columns[1]] - upper[..., columns[0]]) * right
    bottom = lower[..., columns[0]] + (lower[..., columns[1]] - lower[..., columns[0]]) * right
    return top + (bottom - top) * down


def bilinear(images: Tensor, size: int) -> Tensor:
    """Interpolate two pixels in each direction, with half a pixel's offset, without antialiasing.

    pytorch-fid resizes so. Its FID differs in spite of it: its network gets 2 x / 255 - 1, and the one here gets
    (x - 128) / 128, as TensorFlow's graph does.
    """
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def torch_bicubic_aa(images: Tensor, size: int) -> Tensor:
    """Resize by torch's antialiased bicubic filter on floats, not clipped (EDM2 for DINOv2; Karras et al. 2024)."""
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True)


def clean_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize by Pillow's antialiased bicubic filter on each channel in float, clipped to 0..255, not rounded.

    clean-fid resizes so. Pillow's two passes, columns first, are two products with a matrix of the filter's weights in
    float64.
    """
    across, along = (_bicubic_weights(side, size, images.device) for side in images.shape[:1:-1])
    wide = (images.double() @ across.T).float()  # Pillow keeps float32 between the passes
    return (along @ wide.double()).float().clamp(0, 255)


RESIZERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1_bilinear": tf1_bilinear,
    "bilinear": bilinear,
    "clean_bicubic": clean_bicubic,
    "torch_bicubic_aa": torch_bicubic_aa,
}


@lru_cache(maxsize=4)
def _tf1_places(side: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of `size` output pixels the two input pixels, and its position between them, 0..1."""
    scale = torch.tensor(side, dtype=torch.float32) / size
    places = torch.arange(size, dtype=torch.float32) * scale
    first = places.long()
    second = (first + 1).clamp_max(side - 1)
    return first.to(device), second.to(device), (places - first).to(device)


@lru_cache(maxsize=4)
def _bicubic_weights(side: int, size: int, device: torch.device) -> Tensor:
    """Return the weight of each of `side` input pixels in each of `size` output pixels; float64 [size, side].

    Keys' cubic with a = -1/2, stretched by the factor of reduction where the image shrinks, cut off at the border.
    """
    stretch = max(side / size, 1.0)
    centers = (torch.arange(size, dtype=torch.float64) + 0.5) * (side / size)
    # Pillow rounds the window's ends to whole pixels, then evaluates the filter inside.
    first = (centers - 2 * stretch + 0.5).long().clamp_min(0)
    last = (centers + 2 * stretch + 0.5).long().clamp_max(side)
    pixels = torch.arange(side)
    distance = ((pixels + 0.5 - centers[:, None]) / stretch).abs()
    near = ((1.5 * distance) - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = weights * ((pixels >= first[:, None]) & (pixels < last[:, None]))
    return (weights / weights.sum(1, keepdim=True)).to(device)
