"""Convert stored pixels of any channels and depth to those of an `ImageSpec`.

Numbers keep their units, with two exceptions: 8-bit levels of image formats become 16-bit levels (times 257) and the
other way round, and alpha, which is stored as a share of the largest value (1 for floats), becomes `low` to `high`.
"""

from dataclasses import dataclass

import numpy as np

from distgan.data.image_format import CorruptImage, Range
from distgan.image_spec import ImageSpec
from distgan.storage.formatting import interval

LUMA = (19595, 38470, 7471)  # of 65536: ITU-R BT.601, in the whole numbers of Pillow's mode L
BAND_PIXELS = 2**22  # are put on another range at a time
EXACT = 2**24  # whole numbers up to this are float32


@dataclass
class StoredPixels:
    """Pixels as a file holds them.

    Attributes:
        values: [h, w, bands], of any real type.
        has_alpha: Whether the last band is alpha.
        is_levels: Whether 8-bit numbers are levels of an image format, of which 255 is white.
        notes: What was assumed to read them.
    """

    values: np.ndarray
    has_alpha: bool = False
    is_levels: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class DecodedImage:
    """A decoded image.

    Attributes:
        pixels: [H, W, C], of the channels and type that were asked for.
        notes: What was changed on the way, e.g. "alpha".
        values: Lowest and highest value that was stored, where these are not 8-bit levels.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    values: tuple[float, float] | None = None


def wrong_count(bands: int, image: ImageSpec, has_alpha: bool = False) -> CorruptImage:
    """Return the error for an image of a number of channels, with alpha among them or not, that `image` cannot hold."""
    colors = bands - has_alpha
    found = f"{colors} channel{'s' * (colors != 1)}{' and alpha' * has_alpha}, data.channels is {image.channels}"
    keep = ": data.alpha=channel keeps it" if has_alpha and bands == image.channels else ""
    return CorruptImage(found + keep)


def check_count(bands: int, has_alpha: bool, image: ImageSpec) -> None:
    """Raise CorruptImage where that many channels cannot become those of `image`: gray and colors can."""
    colors = bands - has_alpha
    if colors != image.num_colors and not {colors, image.num_colors} <= {1, 3}:
        raise wrong_count(bands, image, has_alpha)


def convert(
    stored: StoredPixels, image: ImageSpec, background: int = 255, value_range: Range | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return pixels [h, w, C] of the type and channels of `image`, and notes of what was changed.

    Args:
        background: Gray level from 0 to 255 under transparent pixels, where `image` has no alpha.
        value_range: Where `image` is uint8: stored values that become 0 and 255.

    Raises:
        CorruptImage: Channels or values that `image` cannot hold, or values that are no finite numbers.
    """
    bands = stored.values.shape[2]
    check_count(bands, stored.has_alpha, image)
    colors = stored.values[..., : bands - stored.has_alpha]
    notes: tuple[str, ...] = stored.notes
    colors, more = _to_dtype(colors, stored.is_levels, image, value_range)
    notes += more
    if colors.shape[2] != image.num_colors:
        colors = luma(colors) if image.num_colors == 1 else np.repeat(colors, 3, axis=2)
    if not stored.has_alpha:
        return (with_alpha(colors, None, image) if image.alpha else colors), notes
    share = alpha_share(stored.values[..., -1:])
    if image.alpha:
        return with_alpha(colors, share, image), notes
    under = np.float32(image.low + background / 255 * (image.high - image.low))
    mixed = colors * share + under * (1 - share)
    return (mixed if image.dtype == "float32" else np.rint(mixed)).astype(image.dtype), (*notes, "alpha")


def luma(colors: np.ndarray) -> np.ndarray:
    """Return the gray [h, w, 1] of colors [h, w, 3], of the same type: Pillow's mode L, in any depth."""
    red, green, blue = LUMA
    if colors.dtype == np.float32:
        return (colors @ (np.array(LUMA, np.float32) / 65536))[..., None]
    whole = colors.astype(np.uint32)
    gray = (whole[..., 0] * red + whole[..., 1] * green + whole[..., 2] * blue + 0x8000) >> 16
    return gray.astype(colors.dtype)[..., None]


def alpha_share(alpha: np.ndarray) -> np.ndarray:
    """Return how visible pixels are, from 0 to 1; float32."""
    full = 1.0 if alpha.dtype.kind == "f" else float(np.iinfo(alpha.dtype).max)
    share = alpha.astype(np.float32) / np.float32(full)
    if not np.isfinite(share).all():
        raise CorruptImage("pixels that are not numbers (NaN or infinite)")
    return share.clip(0, 1)


def with_alpha(colors: np.ndarray, share: np.ndarray | None, image: ImageSpec) -> np.ndarray:
    """Append alpha, from the share [h, w, 1] of visible light, to colors of the values of `image`; None: all of it."""
    height, width, num = colors.shape
    pixels = np.empty((height, width, num + 1), image.dtype)
    pixels[..., :num] = colors
    if share is None:
        pixels[..., num] = image.high
        return pixels
    alpha = image.low + share[..., 0] * np.float32(image.high - image.low)
    pixels[..., num] = alpha if image.dtype == "float32" else np.rint(alpha)
    return hide_colors(pixels, image)


def hide_colors(pixels: np.ndarray, image: ImageSpec) -> np.ndarray:
    """Set colors to the lowest value where alpha is 0, in place: a network must not learn what nobody sees."""
    pixels[pixels[..., -1] <= image.low] = pixels.dtype.type(image.low)
    return pixels


def to_levels(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Map numbers of any kind to uint8 of the same shape: `value_range` becomes 0..255, values outside are clipped."""
    low, high = value_range
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, BAND_PIXELS * len(values) // max(1, values.size))  # the numbers take 8 bytes and more each
    for row in range(0, len(values), rows):
        scaled = (values[row : row + rows].astype(np.float64) - low) * (255 / (high - low))
        levels[row : row + rows] = np.rint(scaled.clip(0, 255))
    return levels


def extent(numbers: np.ndarray) -> Range:
    """Return the lowest and highest number. Raises CorruptImage where some are none."""
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise CorruptImage("pixels that are not numbers (NaN or infinite)")
    return float(numbers.min()), float(numbers.max())


def _to_dtype(
    values: np.ndarray, is_levels: bool, image: ImageSpec, value_range: Range | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return numbers in the type of `image`, and notes."""
    kind = values.dtype.kind
    if kind == "b":
        values, is_levels, kind = values * np.uint8(255), True, "u"
    if image.dtype == "float32":
        return _to_float(values)
    low, high = (0.0, 255.0) if values.dtype == np.uint8 else extent(values)
    if image.dtype == "uint8":
        if value_range is not None:
            return to_levels(values, value_range), ()
        if values.dtype == np.uint8:
            return values, ()
        if kind == "f" or not 0 <= low <= high <= 65535:
            raise CorruptImage("float pixels" if kind == "f" else f"{values.dtype} pixels", (low, high))
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8), ("16 bit",)
    if values.dtype == np.uint16:
        return values.astype(np.uint16, copy=False), ()
    if kind == "f":
        raise CorruptImage("float pixels, data.dtype is uint16", (low, high))
    if values.dtype == np.uint8 and is_levels:
        return values * np.uint16(257), ("8 bit",)
    if not 0 <= low <= high <= 65535:
        raise CorruptImage(f"values of {interval(low, high)}, data.dtype is uint16", (low, high))
    return values.astype(np.uint16), ()


def _to_float(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return finite numbers as float32, and a note where they had to be rounded."""
    low, high = extent(values) if values.dtype.itemsize > 2 or values.dtype.kind == "f" else (0.0, 0.0)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise CorruptImage(f"values of {low:g} to {high:g}, beyond those of float32")
    is_rounded = values.dtype == np.float64 or max(-low, high) > EXACT
    return numbers, ((f"{values.dtype} rounded to float32",) if is_rounded and (numbers != values).any() else ())
