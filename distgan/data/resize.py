"""Bring decoded images to one size: crop or pad to its proportions, and resample, in 8 bits or in float32."""

import numpy as np
from PIL import Image

from distgan.data.channels import hide_colors
from distgan.image_spec import ImageSpec

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}
CROPS = ("center", "stretch", "random", "pad")
_MODES = {(1, False): "L", (3, False): "RGB", (2, True): "LA", (4, True): "RGBA"}  # Pillow's, of 8 bits


def fit(
    pixels: np.ndarray,
    image: ImageSpec,
    filter: str = "lanczos",
    crop: str = "center",
    *,
    background: int = 255,
    place: float | None = None,
) -> np.ndarray:
    """Map an image [h, w, C] to the size of `image`, [H, W, C] of the same values.

    Args:
        filter: A key of FILTERS.
        crop: "center" takes the largest centered part of H x W's proportions, "random" one at `place`, "stretch" all of
            the image, and "pad" all of it between bars of `background`.
        background: Gray level from 0 to 255, of the range of `image`; with alpha, bars are transparent.
        place: Where a random part is, from 0 (top or left) to below 1; None: the center.
    """
    height, width = pixels.shape[:2]
    if crop in ("center", "random"):
        inner_height, inner_width = _largest_part(height, width, image)
        top = _first(height - inner_height, place if crop == "random" else None)
        left = _first(width - inner_width, place if crop == "random" else None)
        pixels = pixels[top : top + inner_height, left : left + inner_width]
    elif crop == "pad" and width * image.height != height * image.width:
        inner_height, inner_width = _largest_part(image.height, image.width, ImageSpec(height, width))
        top, left = (image.height - inner_height) // 2, (image.width - inner_width) // 2
        canvas = np.empty(image.shape, pixels.dtype)
        canvas[:] = image.low if image.alpha else background_value(image, background)
        canvas[top : top + inner_height, left : left + inner_width] = _resize(
            pixels, inner_height, inner_width, filter, image
        )
        return canvas
    return _resize(pixels, image.height, image.width, filter, image)


def background_value(image: ImageSpec, background: int) -> float:
    """Return the value of a gray level from 0 to 255 in the range of `image`."""
    value = image.low + background / 255 * (image.high - image.low)
    return value if image.dtype == "float32" else round(value)


def cropped(width: int, height: int, image: ImageSpec, crop: str) -> float:
    """Return the share of an image's area that `fit` cuts away."""
    if crop not in ("center", "random"):
        return 0.0
    a, b = width * image.height, height * image.width
    return 1 - min(a, b) / max(a, b)


def _largest_part(height: int, width: int, image: ImageSpec) -> tuple[int, int]:
    """Return height and width of the largest part of a size that has the proportions of `image`, in whole pixels."""
    if width * image.height > height * image.width:
        return height, max(1, (2 * height * image.width + image.height) // (2 * image.height))
    return max(1, (2 * width * image.height + image.width) // (2 * image.width)), width


def _first(room: int, place: float | None) -> int:
    """Return the first row or column of a part that may be moved by `room` pixels."""
    return room // 2 if place is None else min(int(place * (room + 1)), room)


def _resize(pixels: np.ndarray, height: int, width: int, filter: str, image: ImageSpec) -> np.ndarray:
    """Resample to [height, width, C]; with alpha, colors count by how visible they are."""
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    has_plain_levels = pixels.dtype == np.uint8 and (not image.alpha or (image.low, image.high) == (0, 255))
    mode = _MODES.get((pixels.shape[2], image.alpha)) if has_plain_levels else None
    if mode is not None:
        whole = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if mode == "L" else pixels), mode)
        levels = np.asarray(whole.resize((width, height), FILTERS[filter])).reshape(height, width, -1)
        return hide_colors(levels.copy(), image) if image.alpha else levels
    if has_plain_levels:
        return _resize_bands(pixels, height, width, filter)
    values = pixels.astype(np.float32)
    if image.alpha:
        values -= np.float32(image.low)
        values[..., :-1] *= values[..., -1:] / np.float32(image.high - image.low)
    values = _resize_bands(values, height, width, filter)
    if image.alpha:
        full = np.float32(image.high - image.low)
        alpha = values[..., -1:].clip(0, full)
        values[..., :-1] *= np.divide(full, alpha, out=np.zeros_like(alpha), where=alpha > full * 1e-6)
        values[..., -1:] = alpha
        values += np.float32(image.low)
    if pixels.dtype == np.float32:
        return hide_colors(values, image) if image.alpha else values
    most = np.iinfo(pixels.dtype).max
    whole_numbers = np.rint(values).clip(0, most).astype(pixels.dtype)
    return hide_colors(whole_numbers, image) if image.alpha else whole_numbers


def _resize_bands(values: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    """Resample each channel alone; values are uint8 or float32."""
    out = np.empty((height, width, values.shape[2]), values.dtype)
    for band in range(values.shape[2]):
        one = Image.fromarray(np.ascontiguousarray(values[..., band]))
        out[..., band] = np.asarray(one.resize((width, height), FILTERS[filter]))
    return out
