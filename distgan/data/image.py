"""Image bytes -> RGB uint8, by one rule for every format and decoder.

JPEG goes through libjpeg-turbo directly, which is bit-identical to Pillow, does not hold Python's lock, and refuses
damaged data; everything else goes through Pillow. What a file is, its first bytes tell, not its name.
"""

import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

SUFFIXES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2", "avif"}
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}
MAX_PIXELS = 100_000_000
JPEG = b"\xff\xd8\xff"
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


class BadImage(Exception):
    """Bytes that do not give a picture; the message is the reason, fit for a tally."""


class TooLarge(BadImage):
    """A picture of more pixels than were allowed."""

    def __init__(self, max_pixels: int) -> None:
        super().__init__(f"too many pixels (more than {max_pixels:,})")


@dataclass
class Picture:
    """Attributes: `pixels`, RGB uint8 [H, W, 3]; `notes`, what was changed on the way, e.g. "alpha"."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, background: int = 255, least: int = 0) -> Picture:
    """Decode a picture of any common format.

    Orientation marks are applied, transparent pixels lie on a `background` of that grey level, 16 bits become 8 by
    scaling, CMYK and greyscale become RGB, and of an animation the first frame is taken.

    Args:
        least: Decode a JPEG at the smallest fraction in eighths, at most a half, at which neither side is shorter than
            this; 0: as it is.

    Raises:
        BadImage: no image, a damaged one, or one of more than `max_pixels` pixels (checked before decoding).
    """
    if not data:
        raise BadImage("empty file")
    if data.startswith(JPEG):
        return _decode_jpeg(data, max_pixels, least)
    try:
        _silence_pillow()
        image = Image.open(io.BytesIO(data))
        _check_size(*image.size, max_pixels)
        image.load()
        return _to_rgb(image, background)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise TooLarge(max_pixels) from None
    except Image.UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, OSError ... on damaged files
        raise BadImage(f"damaged ({type(error).__name__})") from None


@lru_cache(maxsize=1)
def _silence_pillow() -> None:
    """Pillow warns of what is checked here. For the whole process and once: filters are not made for threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_into(data: bytes, out: np.ndarray, *, max_pixels: int, filter: str, crop: str, scaled: bool = False) -> bool:
    """Decode a picture into `out`, RGB uint8 [R, R, 3]; tells whether it had to be resized for that.

    A `scaled` decode skips the finest frequencies of a JPEG that is at least four times as large, which the resize
    would remove; what it decodes is still twice as large as `out`.
    """
    if data.startswith(JPEG) and not _may_be_turned(data):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == out.shape[:2]:
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return False
        except ValueError:
            pass  # `decode` says why
    pixels = decode(data, max_pixels=max_pixels, least=2 * len(out) if scaled else 0).pixels
    if pixels.shape == out.shape:
        out[:] = pixels
        return False
    out[:] = fit(pixels, out.shape[0], filter, crop)
    return True


def fit(pixels: np.ndarray, resolution: int, filter: str = "lanczos", crop: str = "center") -> np.ndarray:
    """RGB uint8 [H, W, 3] -> [R, R, 3]: the largest centred square ("center"), or all of it squeezed ("squeeze")."""
    if crop == "center":
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if pixels.shape[:2] == (resolution, resolution):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((resolution, resolution), FILTERS[filter]))


def _decode_jpeg(data: bytes, max_pixels: int, least: int) -> Picture:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        fraction = (
            {"min_height": least, "min_width": least, "min_factor": 2} if min(height, width) >= 2 * least > 0 else {}
        )
        pixels = simplejpeg.decode_jpeg(data, "RGB", **fraction)
    except ValueError:
        raise BadImage("damaged") from None
    if _may_be_turned(data) and (turn := TURNS.get(_orientation(data))) is not None:
        return Picture(np.asarray(Image.fromarray(pixels).transpose(turn)), ("turned upright",))
    return Picture(pixels)


def _may_be_turned(data: bytes) -> bool:
    return data.find(b"Exif\0", 0, 65536) >= 0


def _orientation(jpeg: bytes) -> int:
    """What the camera noted of how it was held; 1 is upright."""
    try:
        return Image.open(io.BytesIO(jpeg)).getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block; Pillow's reader raises of every kind
        return 1


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(max_pixels)


def _to_rgb(image: Image.Image, background: int) -> Picture:
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
        notes.append("animation, first frame taken")
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("turned upright")
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
        notes.append("16 bit")
    elif image.mode == "F":
        raise BadImage("float pixels")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (background, background, background, 255))
        image = Image.alpha_composite(under, image)
        notes.append("alpha")
    elif image.mode == "CMYK":
        notes.append("CMYK")
    return Picture(np.asarray(image.convert("RGB")), tuple(notes))
