"""Image bytes -> RGB uint8, by one rule for every format and decoder.

JPEG goes through libjpeg-turbo directly, which is bit-identical to Pillow and does not hold Python's lock; everything
else, and every JPEG with an orientation mark, goes through Pillow. What a file is, its first bytes tell, not its name.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

SUFFIXES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2", "avif"}
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}
MAX_PIXELS = 100_000_000


class BadImage(Exception):
    """Bytes that do not give a picture; the message is the reason, fit for a tally."""


@dataclass
class Picture:
    """Attributes: `pixels`, RGB uint8 [H, W, 3]; `notes`, what was changed on the way, e.g. "alpha"."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, background: int = 255) -> Picture:
    """Decode a picture of any common format.

    Orientation marks are applied, transparent pixels lie on a `background` of that grey level, 16 bits become 8 by
    scaling, CMYK and greyscale become RGB, and of an animation the first frame is taken.

    Raises:
        BadImage: no image, a damaged one, or one of more than `max_pixels` pixels (checked before decoding).
    """
    if _is_plain_jpeg(data):
        return Picture(_decode_jpeg(data, max_pixels))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is checked here
            image = Image.open(io.BytesIO(data))
            _check_size(*image.size, max_pixels)
            image.load()
            return _to_rgb(image, background)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Image.UnidentifiedImageError:
        raise BadImage("damaged" if data.startswith(b"\xff\xd8\xff") else "not an image") from None
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, OSError ... on damaged files
        raise BadImage(f"damaged ({type(error).__name__})") from None


def decode_into(data: bytes, out: np.ndarray, *, max_pixels: int, filter: str, crop: str) -> bool:
    """Decode a picture into `out`, RGB uint8 [R, R, 3]; tells whether it had to be resized for that."""
    if _is_plain_jpeg(data):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == out.shape[:2]:
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return False
        except ValueError:
            pass  # `decode` says why
    pixels = decode(data, max_pixels=max_pixels).pixels
    if pixels.shape == out.shape:
        out[:] = pixels
        return False
    out[:] = fit(pixels, out.shape[0], filter, crop)
    return True


def fit(pixels: np.ndarray, resolution: int, filter: str = "lanczos", crop: str = "center") -> np.ndarray:
    """RGB uint8 [H, W, 3] -> [R, R, 3]: the largest centred square ("center"), or all of it squeezed ("squeeze")."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    box = None
    if crop == "center":
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    if pixels.shape[:2] == (resolution, resolution):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((resolution, resolution), FILTERS[filter], box=box))


def _is_plain_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff") and data.find(b"Exif\0", 0, 65536) < 0


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        raise BadImage("damaged") from None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage("too many pixels")


def _to_rgb(image: Image.Image, background: int) -> Picture:
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
        notes.append("animation, first frame taken")
    if image.getexif().get(0x0112, 1) != 1:
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
