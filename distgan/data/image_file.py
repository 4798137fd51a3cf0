"""Write images as files: PNG (or WebP, JPEG) where that holds them whole, NumPy arrays else."""

import io

import numpy as np
from PIL import Image

from distgan.image_spec import LEVELS, ImageSpec

FORMATS: dict[str, tuple[str, dict[str, int]]] = {  # Pillow's name of a format, and its settings
    "png": ("PNG", {"compress_level": 1}),  # level 6 takes four times as long for a tenth of the bytes
    "webp": ("WEBP", {"lossless": True, "method": 0}),
    "jpg": ("JPEG", {"subsampling": 0}),
}


def suffix(image: ImageSpec, wanted: str = "png") -> str:
    """Return the suffix of a file that holds such images whole.

    That is `wanted`, a key of `FORMATS`, for gray and colors of 8 bits, "png" for gray of 16 bits, "npy" for others.
    """
    if image.dtype == "uint16":
        return "png" if image.channels == 1 else "npy"  # Pillow writes no colors of 16 bits
    return wanted if image.dtype == "uint8" and image.num_colors in (1, 3) else "npy"


def to_bytes(pixels: np.ndarray, image: ImageSpec, kind: str = "", quality: int = 95) -> bytes:
    """Return the bytes of a file with an image [H, W, C].

    Args:
        kind: A key of `FORMATS`, or "npy"; empty: what `suffix` names.
        quality: Of "jpg".
    """
    kind = kind or suffix(image)
    pixels = _with_share(pixels, image)
    out = io.BytesIO()
    if kind == "npy":
        values = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
        np.save(out, np.ascontiguousarray(values), allow_pickle=False)
        return out.getvalue()
    pillow_format, settings = FORMATS[kind]
    if kind == "jpg":
        settings = settings | {"quality": quality}
    if kind == "webp" and image.alpha:
        settings = settings | {"exact": True}  # colors under full transparency, too
    Image.fromarray(pixels[..., 0] if image.channels == 1 else pixels).save(out, pillow_format, **settings)
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
