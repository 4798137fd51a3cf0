"""Write images as files: PNG where that holds them whole, NumPy arrays else."""

import io

import numpy as np
from PIL import Image

from distgan.image_spec import LEVELS, ImageSpec

PNG_LEVEL = 1  # of compression: 6 takes four times as long for a tenth of the bytes


def suffix(image: ImageSpec) -> str:
    """Return the suffix of a file that holds such images: "png" for gray and colors in whole numbers, or "npy"."""
    if image.dtype == "uint16":
        return "png" if image.channels == 1 else "npy"  # Pillow writes no colors of 16 bits
    return "png" if image.dtype == "uint8" and image.num_colors in (1, 3) else "npy"


def to_bytes(pixels: np.ndarray, image: ImageSpec) -> bytes:
    """Return the bytes of a file, of the kind that `suffix` names, with an image [H, W, C]."""
    pixels = _with_share(pixels, image)
    out = io.BytesIO()
    if suffix(image) == "npy":
        np.save(out, np.ascontiguousarray(pixels), allow_pickle=False)
    else:
        Image.fromarray(pixels[..., 0] if image.channels == 1 else pixels).save(
            out, format="PNG", compress_level=PNG_LEVEL
        )
    return out.getvalue()


def _with_share(pixels: np.ndarray, image: ImageSpec) -> np.ndarray:
    """Return pixels whose alpha is what files have: a share of the dtype's largest value, or of 1 for floats.

    Between `low` and `high`, as the colors, it is in memory alone.
    """
    if not image.alpha or image.has_all_levels:
        return pixels
    share = (pixels[..., -1].astype(np.float64) - image.low) / (image.high - image.low) * LEVELS.get(image.dtype, 1)
    pixels = pixels.copy()
    pixels[..., -1] = np.rint(share) if image.dtype in LEVELS else share
    return pixels
