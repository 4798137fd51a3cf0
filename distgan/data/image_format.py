"""Formats of images: known by suffix and first bytes, bounded in size, opened by chosen readers of Pillow."""

import io
import re
import warnings
from functools import lru_cache

from PIL import Image, ImageFile

# All that Pillow may open: other formats of its are rare among data sets, and one starts a program (EPS, Ghostscript).
FORMATS = ("PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "JPEG")
SUFFIXES = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "jp2", "avif"}
ARRAYS = {"npy"}  # images too, where there are none of the others
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0\0\0\0|RIFF.{4}WEBP|II\*\0|MM\0\*|P[1-6]\s|\0\0\0\x0cjP|.{4}ftypavi[fs]",
    re.DOTALL,
)
MAX_PIXELS = 100_000_000
MAX_BYTES = 2**29  # of a file; 178 million pixels without compression have so many, which is where Pillow stops
Range = tuple[float, float]


def looks_like_image(head: bytes) -> bool:
    """Return whether the first 16 bytes of a file are those of an image."""
    return _BEGINNINGS.match(head) is not None


class CorruptImage(Exception):
    """Bytes that do not give an image; the message is the reason, fit for a tally.

    Attributes:
        values: Lowest and highest value stored, where only a range is missing.
    """

    def __init__(self, reason: str, values: Range | None = None) -> None:
        super().__init__(reason)
        self.values = values


class TooLarge(CorruptImage):
    """An image of more pixels than were allowed."""

    def __init__(self, max_pixels: int) -> None:
        super().__init__(f"too many pixels (more than {max_pixels:,})")


def check_bytes(size: int) -> None:
    """Refuse what no image is as large as, before it is read: it may be a hole, or zeros that were packed well."""
    if size > MAX_BYTES:
        raise CorruptImage(f"a file of more than {MAX_BYTES >> 20} MiB")


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image of a known format, without decoding it; the only door to Pillow's readers."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


@lru_cache(maxsize=1)
def silence_pillow() -> None:
    """Turn off Pillow's warnings, whose causes are checked here. Once: filters are not made for threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
