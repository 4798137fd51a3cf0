"""Map the values of images to what networks see, and what they make back: to stored values, or to what people see.

Networks see float [B, C, H, W] where an `ImageSpec`'s `low` is -1 and its `high` is 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distgan.image_spec import LEVELS, ImageSpec

TORCH = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}


def to_networks(
    pixels: Tensor,
    image: ImageSpec,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """Map stored values [B, H, W, C] to [B, C, H, W]; those beyond the range are clipped to -1..1."""
    assert pixels.dtype == TORCH[image.dtype], (pixels.dtype, image)
    values = pixels.permute(0, 3, 1, 2).to(dtype, memory_format=memory_format)
    scaled = (values - image.low if image.low else values) / image.half_range - 1
    return scaled if image.has_all_levels else scaled.clamp(-1, 1)


def to_stored(images: Tensor, image: ImageSpec) -> Tensor:
    """Map a network's images [B, C, H, W] to stored values [B, H, W, C] of `image.dtype`, on their device.

    They are clipped to the range, whole numbers are rounded to the nearest, and invisible pixels have no color.
    """
    values = images.float() * image.half_range + (image.low + image.half_range)
    values = values.round() if image.dtype in LEVELS else values
    values = values.clamp(image.low, image.high)
    if image.alpha:
        is_visible = values[:, -1:] > image.low
        values = torch.cat([torch.where(is_visible, values[:, :-1], image.low), values[:, -1:]], 1)
    return values.to(TORCH[image.dtype]).permute(0, 2, 3, 1)


def to_pixels(images: Tensor, image: ImageSpec) -> np.ndarray:
    """Map a network's images [B, C, H, W] to stored values [B, H, W, C] on the host."""
    return to_stored(images, image).cpu().numpy()


def to_display(images: Tensor, image: ImageSpec, bands: Sequence[int] = ()) -> Tensor:
    """Map a network's images [B, C, H, W] to what people and feature networks see: uint8 [B, 3, H, W], on their device.

    Gray becomes three equal channels, transparent pixels lie on white, and of other images three channels are shown.

    Args:
        bands: The channels that become red, green and blue, of images that are no colors; none: the first three.
    """
    if image.alpha:
        alpha = ((images[:, -1:] + 1) / 2).clamp(0, 1)
        images = images[:, :-1] * alpha + (1 - alpha)
    chosen = _bands(image, bands)
    return _to_levels(images if chosen is None else images[:, chosen]).expand(-1, 3, -1, -1)


def display_pixels(pixels: np.ndarray, image: ImageSpec, bands: Sequence[int] = ()) -> np.ndarray:
    """Map stored values [B, H, W, C] to what people see, uint8 [B, H, W, 3], on the host."""
    if image.is_rgb8 and not bands:
        return pixels
    seen = to_display(to_networks(torch.from_numpy(pixels), image), image, bands)
    return seen.permute(0, 2, 3, 1).contiguous().numpy()


def shown_as(image: ImageSpec, bands: Sequence[int] = ()) -> str:
    """Return a word for what `to_display` shows instead of the image itself; "" for colors, which it shows as they are.

    Values of metrics carry it in their name, since they are comparable only where the same was shown.
    """
    chosen = _bands(image, bands)
    how = {1: "gray", 3: ""}[image.num_colors] if chosen is None else "bands_" + "_".join(map(str, chosen))
    return "_".join(filter(None, [how, "on_white" * image.alpha]))


def _bands(image: ImageSpec, bands: Sequence[int]) -> list[int] | None:
    """Return the channels to show; None for all, of gray and colors."""
    if image.num_colors in (1, 3) and not bands:
        return None
    return list(bands) or [min(i, image.num_colors - 1) for i in range(3)]


def _to_levels(images: Tensor) -> Tensor:
    """Map images in -1..1 to uint8 of the same shape, rounded to the nearest level."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
