"""Decode image bytes to RGB uint8, by one rule for every format and decoder.

JPEG goes through libjpeg-turbo directly, which gives Pillow's bits for gray and color (CMYK may differ by one level of
255), does not hold Python's lock, and refuses corrupt data; everything else goes through Pillow. What a file is, its
first bytes tell, not its name.
"""

import contextlib
import sys
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from distgan.data import image_structure
from distgan.data.image_format import MAX_PIXELS, CorruptImage, Range, TooLarge, open_image, silence_pillow
from distgan.data.memory_budget import MemoryBudget
from distgan.image_spec import ImageSpec

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}
JPEG = b"\xff\xd8\xff"
JPEG_BYTES, SCANS_BYTES = 6, 12  # of memory for each pixel of a JPEG; of one in several scans
PIXEL_BYTES = 32  # of memory for each pixel of another format, whose alpha and 16 bits take most
BAND_PIXELS = 2**22  # are put on another range at a time
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass
class DecodedImage:
    """A decoded image.

    Attributes:
        pixels: RGB uint8 [H, W, 3].
        notes: What was changed on the way, e.g. "alpha".
        values: Lowest and highest value that was stored, where these are not 8-bit levels.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    values: tuple[float, float] | None = None


@dataclass(frozen=True)
class DecodeOptions:
    """The rule by which images of any size become square and of one size.

    Attributes:
        image: Channels, size and values of the result.
        filter: Resampling filter: "lanczos", "area" or "bicubic".
        crop: "center" takes the largest centered square, "stretch" the whole image.
        max_pixels: Larger images count as corrupt.
        scaled: Skip the finest frequencies of a JPEG that is at least four times as large, which the resize would
            remove; what is decoded is still twice as large as the result.
    """

    image: ImageSpec
    filter: str = "lanczos"
    crop: str = "center"
    max_pixels: int = MAX_PIXELS
    scaled: bool = False


def decode(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    background: int = 255,
    least: int = 0,
    value_range: Range | None = None,
    measure: bool = False,
    hold: contextlib.ExitStack | None = None,
) -> DecodedImage:
    """Decode an image of any common format.

    Orientation marks are applied, transparent pixels lie on a `background` of that gray level, 16 bits become 8 by
    scaling, CMYK and grayscale become RGB, and of an animation the first frame is taken.

    Args:
        least: Decode a JPEG at the smallest fraction in eighths, at most a half, at which neither side is shorter than
            this; 0: as it is.
        value_range: Stored values that become black and white, of any depth; those beyond are clipped. None: 0 and the
            largest value of the format, which is 65535 for whole numbers of more than 8 bits.
        measure: Find the lowest and highest value that is stored.
        hold: Keeps the image's part of the memory that all share until it is closed, for what comes after decoding.

    Raises:
        CorruptImage: no image, a corrupt one, one of more than `max_pixels` pixels (checked before decoding), or one of
            floating-point numbers where no `value_range` is given.
    """
    if not data:
        raise CorruptImage("empty file")
    with contextlib.ExitStack() as own:
        if not data.startswith(JPEG):
            return _decode_with_pillow(data, max_pixels, background, value_range, measure, hold or own)
        decoded = _decode_jpeg(data, max_pixels, least, hold or own)
        if value_range is not None:
            decoded.pixels = to_levels(decoded.pixels, value_range)
        return decoded


def _decode_with_pillow(
    data: bytes,
    max_pixels: int,
    background: int,
    value_range: Range | None,
    measure: bool,
    hold: contextlib.ExitStack,
) -> DecodedImage:
    """Decode an image of any format but JPEG."""
    if reason := image_structure.objection(data):
        raise CorruptImage(reason)
    try:
        silence_pillow()
        data = image_structure.first_image(data)
        image = open_image(data)
        _check_size(*image.size, max_pixels)
        hold.enter_context(_memory.reserve(PIXEL_BYTES * image.width * image.height))
        colors = _load(image, data if measure or value_range else b"")
        return _to_rgb(image, background, colors, value_range)
    except CorruptImage:
        raise
    except Image.DecompressionBombError:
        raise TooLarge(max_pixels) from None
    except Image.UnidentifiedImageError:
        raise CorruptImage("not an image") from None
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, OSError ... on corrupt files
        raise CorruptImage(f"corrupt ({type(error).__name__})") from None


def share_memory(budget: MemoryBudget) -> None:
    """Share the memory for decoding with other processes; before that, all threads of this process share it."""
    global _memory
    _memory = budget


_memory = MemoryBudget()  # of the process, as memory is


def decode_into(data: bytes, out: np.ndarray, options: DecodeOptions) -> bool:
    """Decode an image into `out`, RGB uint8 [R, R, 3]; returns whether it had to be resized for that."""
    if data.startswith(JPEG) and not _may_be_turned(data):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == out.shape[:2]:
                reason, has_scans = image_structure.jpeg_objection(data)
                if reason:
                    raise CorruptImage(reason)
                with _memory.reserve(height * width * (SCANS_BYTES if has_scans else 0)):
                    simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return False
        except ValueError:
            pass  # `decode` says why
    with contextlib.ExitStack() as hold:
        least = 2 * options.image.height if options.scaled else 0
        pixels = decode(data, max_pixels=options.max_pixels, least=least, hold=hold).pixels
        if pixels.shape == out.shape:
            out[:] = pixels
            return False
        out[:] = fit(pixels, options.image.height, options.filter, options.crop)
        return True


def fit(pixels: np.ndarray, resolution: int, filter: str = "lanczos", crop: str = "center") -> np.ndarray:
    """Map RGB uint8 [H, W, 3] to [R, R, 3]: the largest centered square ("center"), or all of it ("stretch")."""
    if crop == "center":
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if pixels.shape[:2] == (resolution, resolution):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((resolution, resolution), FILTERS[filter]))


def cropped(width: int, height: int, crop: str) -> float:
    """Return the share of an image's area that `fit` cuts away."""
    return 1 - min(width, height) / max(width, height) if crop == "center" else 0.0


def _decode_jpeg(data: bytes, max_pixels: int, least: int, hold: contextlib.ExitStack) -> DecodedImage:
    reason, has_scans = image_structure.jpeg_objection(data)
    if reason:
        raise CorruptImage(reason)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        hold.enter_context(_memory.reserve((SCANS_BYTES if has_scans else JPEG_BYTES) * width * height))
        fraction = (
            {"min_height": least, "min_width": least, "min_factor": 2} if min(height, width) >= 2 * least > 0 else {}
        )
        pixels = simplejpeg.decode_jpeg(data, "RGB", **fraction)
    except ValueError:
        raise CorruptImage("corrupt") from None
    if _may_be_turned(data) and (turn := TURNS.get(_orientation(data))) is not None:
        return DecodedImage(np.asarray(Image.fromarray(pixels).transpose(turn)), ("turned upright",))
    return DecodedImage(pixels)


def _may_be_turned(data: bytes) -> bool:
    """Return whether a JPEG may have an EXIF block with an orientation."""
    return data.find(b"Exif\0", 0, 65536) >= 0


def _orientation(jpeg: bytes) -> int:
    """Return how the camera was held, as it noted; 1 is upright."""
    try:
        return open_image(jpeg).getexif().get(ORIENTATION, 1)
    except Exception:  # a corrupt EXIF block; Pillow's reader raises of every kind
        return 1


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(max_pixels)


def to_levels(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Map numbers of any kind to uint8 of the same shape: `value_range` becomes 0..255, values outside are clipped."""
    low, high = value_range
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, BAND_PIXELS * len(values) // max(1, values.size))  # the numbers take 8 bytes and more each
    for row in range(0, len(values), rows):
        scaled = (values[row : row + rows].astype(np.float64) - low) * (255 / (high - low))
        levels[row : row + rows] = np.rint(scaled.clip(0, 255))
    return levels


def _load(image: ImageFile.ImageFile, data: bytes) -> np.ndarray | None:
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


def _to_rgb(image: Image.Image, background: int, colors: np.ndarray | None, value_range: Range | None) -> DecodedImage:
    """Return a decoded image as RGB; `colors` are its 16-bit ones, where they are wanted and it has them."""
    notes: list[str] = []
    values: Range | None = None
    orientation = image.getexif().get(ORIENTATION, 1)
    if getattr(image, "is_animated", False):
        image.seek(0)
        notes.append("animation, first frame taken")
    if colors is not None:
        notes.append("16 bit")
        values = _extent(colors[..., : _num_colors(image)])
    elif image.mode.startswith("I;16") or image.mode in ("I", "F"):
        colors = np.asarray(image)
        values = _extent(colors)
        if image.mode == "F" and value_range is None:
            raise CorruptImage("float pixels", values)
        notes.append("float pixels" if image.mode == "F" else "16 bit")
        if value_range is None:
            image = Image.fromarray(((colors.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8))
    if value_range is not None:
        image = _with_range(image, colors, value_range)
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
        notes.append("turned upright")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (background, background, background, 255))
        image = Image.alpha_composite(under, image)
        notes.append("alpha")
    elif image.mode == "CMYK":
        notes.append("CMYK")
    return DecodedImage(np.asarray(image.convert("RGB")), tuple(notes), values)


def _extent(numbers: np.ndarray) -> Range:
    """Return the lowest and highest number. Raises CorruptImage where some are none."""
    if not np.isfinite(numbers).all():
        raise CorruptImage("pixels that are not numbers (NaN or infinite)")
    return float(numbers.min()), float(numbers.max())


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
