"""Turn what Pillow decodes into the channels and values of an `ImageSpec`, in 8 bits or deeper."""

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile

from distgan.data.channels import DecodedImage, StoredPixels, convert, extent, to_levels, with_alpha, wrong_count
from distgan.data.image_format import CorruptImage, Range, open_image
from distgan.image_spec import ImageSpec

ORIENTATION = 0x0112  # EXIF tag
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what makes [H, W, C] upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image [H, W, C] as its EXIF orientation says."""
    return np.ascontiguousarray(TURNS[orientation](pixels)) if orientation in TURNS else pixels


def load(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
    """Decode an opened image; with its bytes, returns its 16-bit colors as uint16 [H, W, C], where it has such.

    Pillow's reader of 16-bit colors takes one of each two bytes. A second look with the other byte order takes the
    other one.
    """
    first = image.tile[0].args if image.tile else ""
    raw = first if isinstance(first, str) else first[0] if first else ""
    image.load()
    if not data or not isinstance(raw, str) or ";16" not in raw or image.mode not in ("RGB", "RGBA", "LA"):
        return None
    high = np.asarray(image).astype(np.uint16)
    name, _, order = raw.partition(";16")
    if name != image.mode or name == "LA" or order not in ("B", "L", "N"):
        return high * 257  # there is no other byte order to look with: the lower 8 bits are not known
    is_big = order == "B" or (order == "N" and sys.byteorder == "big")
    swapped = f"{name};16{'L' if is_big else 'B'}"
    other = open_image(data)
    other.tile = [
        tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
        for tile in other.tile
    ]
    other.load()
    return high * 256 + np.asarray(other)


def to_8_bits(
    image: Image.Image, spec: ImageSpec, background: int, colors: np.ndarray | None, value_range: Range | None
) -> DecodedImage:
    """Return a decoded image in 8 bits; `colors` are its 16-bit ones, where they are wanted and it has them."""
    notes: list[str] = []
    values: Range | None = None
    if spec.num_colors not in (1, 3):
        num_colors = 1 if len(image.getbands()) < 3 and image.mode not in ("P", "PA") else 3
        has_alpha = _has_alpha(image)
        raise wrong_count(num_colors + has_alpha, spec, has_alpha)
    orientation = image.getexif().get(ORIENTATION, 1)
    if getattr(image, "is_animated", False):
        image.seek(0)
        notes.append("animation, first frame taken")
    if colors is not None:
        notes.append("16 bit")
        values = extent(colors[..., : _num_colors(image)])
    elif image.mode.startswith("I;16") or image.mode in ("I", "F"):
        colors = np.asarray(image)
        values = extent(colors)
        if image.mode == "F" and value_range is None:
            raise CorruptImage("float pixels", values)
        notes.append("float pixels" if image.mode == "F" else "16 bit")
        if value_range is None:
            image = Image.fromarray(((colors.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8))
    if value_range is not None:
        image = _with_range(image, colors, value_range)
    notes += ["turned upright"] if orientation in TURNS else []
    alpha = None
    if _has_alpha(image):
        image = image.convert("RGBA")
        if spec.alpha:
            alpha = image.getchannel("A")
        else:
            under = Image.new("RGBA", image.size, (background, background, background, 255))
            image = Image.alpha_composite(under, image)
            notes.append("alpha")
    elif image.mode == "CMYK":
        notes.append("CMYK")
    pixels = np.asarray(image.convert("RGB" if spec.num_colors == 3 else "L"))
    pixels = pixels.reshape(*pixels.shape[:2], spec.num_colors)
    if spec.alpha:
        share = None if alpha is None else np.asarray(alpha, np.float32)[..., None] / 255
        pixels = with_alpha(pixels, share, spec)
    return DecodedImage(upright(pixels, orientation), tuple(notes), values)


def to_deep(image: Image.Image, spec: ImageSpec, background: int, colors: np.ndarray | None) -> DecodedImage:
    """Return a decoded image as uint16 or float32; `colors` are its 16-bit ones, where it has them."""
    notes: list[str] = []
    values: Range | None = None
    orientation = image.getexif().get(ORIENTATION, 1)
    if getattr(image, "is_animated", False):
        image.seek(0)
        notes.append("animation, first frame taken")
    has_alpha = colors is not None and image.mode.endswith("A")
    if colors is not None:
        values = extent(colors[..., : _num_colors(image)])
        if image.mode == "LA":
            notes.append("16 bit with alpha, of which 8 bits are read")
    elif image.mode.startswith("I;16") or image.mode in ("I", "F"):
        colors = np.asarray(image)
        values = extent(colors)
    else:
        has_alpha = _has_alpha(image)
        notes += ["CMYK"] if image.mode == "CMYK" else []
        if has_alpha or image.mode not in ("L", "RGB"):
            image = image.convert("RGBA" if has_alpha else "L" if image.mode == "1" else "RGB")
        colors = np.asarray(image)
    stored = StoredPixels(colors.reshape(*colors.shape[:2], -1), has_alpha, is_levels=colors.dtype == np.uint8)
    pixels, more = convert(stored, spec, background)
    notes += ["turned upright"] if orientation in TURNS else []
    return DecodedImage(upright(pixels, orientation), (*notes, *more), values)


def _has_alpha(image: Image.Image) -> bool:
    """Return whether some pixels of an image may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _num_colors(image: Image.Image) -> int:
    """Return the number of bands without alpha."""
    return len(image.getbands()) - image.mode.endswith("A")


def _with_range(image: Image.Image, colors: np.ndarray | None, value_range: Range) -> Image.Image:
    """Return the image with its colors on that range, its alpha as it is; `colors` are those of more than 8 bits."""
    if colors is None:
        if image.mode not in ("L", "LA", "RGB", "RGBA") or "transparency" in image.info:
            has_alpha = image.mode in ("PA", "RGBa", "La") or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "RGB")
        colors = np.asarray(image)
    if colors.ndim == 2:
        return Image.fromarray(to_levels(colors, value_range))
    levels = np.asarray(image).copy()
    num = _num_colors(image)
    levels[..., :num] = to_levels(colors[..., :num], value_range)
    return Image.fromarray(levels)
