"""Read images that Pillow does not: arrays (.npy), and TIFFs of more bands or deeper ones, by `tifffile`.

The file's first bytes tell which it is. A TIFF's directory: TIFF 6.0, section 2; BigTIFF has longer fields.
"""

import contextlib
import importlib.util
import io
import logging
import lzma
import struct
import zlib
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from distgan.data.channels import StoredPixels, wrong_count
from distgan.data.image_format import MAX_BYTES, CorruptImage, TooLarge
from distgan.data.memory_budget import MemoryBudget
from distgan.image_spec import ImageSpec
from distgan.storage.array_file import parse_npy

if TYPE_CHECKING:
    import tifffile

NPY = b"\x93NUMPY"
VALUE_BYTES = 12  # of memory for each number, while it is converted
MAX_TAGS = 1000  # of a TIFF's directory
SMALL_SEGMENT = 2**18  # compressed bytes of a TIFF that cannot inflate to much
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of a TIFF's whole numbers
_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT = 258, 262, 277, 338, 339  # tags
_CMYK = 5
_COLORS = {2: 3, _CMYK: 4, 6: 3, 8: 3}  # bands of RGB, CMYK, YCbCr and L*a*b*; others have one
_DEFLATE = (8, 32946)  # compressions
_LZMA = 34925


@dataclass(frozen=True)
class TiffLayout:
    """What the first directory of a TIFF says of its pixels.

    Attributes:
        samples: Bands of a pixel.
        bits: Of each number.
        is_float: Whether these are floating-point numbers.
        has_alpha: Whether the last band is marked as alpha.
        has_known_colors: Whether the bands are gray, RGB, CMYK or another space that Pillow converts.
        has_more_pages: Whether there are more directories after the first.
    """

    samples: int
    bits: int
    is_float: bool
    has_alpha: bool
    has_known_colors: bool
    has_more_pages: bool = False


def is_array(data: bytes) -> bool:
    """Return whether a file is an .npy array."""
    return data.startswith(NPY)


def read_npy(
    data: bytes, image: ImageSpec, max_pixels: int, memory: MemoryBudget, hold: contextlib.ExitStack
) -> StoredPixels:
    """Read an array [H, W], [H, W, C] or, where only that fits the channels of `image`, [C, H, W].

    Raises:
        CorruptImage: Another array, or none.
    """
    try:
        values = parse_npy(data)
    except ValueError as error:
        raise CorruptImage(f"no array ({error})") from None
    if values.dtype.kind not in "biuf":
        raise CorruptImage(f"an array of {values.dtype}, not of numbers")
    values, notes = channels_last(values, image)
    height, width, bands = values.shape
    if height * width > max_pixels:
        raise TooLarge(max_pixels)
    hold.enter_context(memory.reserve(VALUE_BYTES * values.size))
    native = values.dtype.newbyteorder("=")
    return StoredPixels(values.astype(native, copy=False), image.alpha and bands == image.channels, notes=notes)


def channels_last(values: np.ndarray, image: ImageSpec) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an array as [H, W, C], and a note where its channels were in front. Raises CorruptImage."""
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape:
        raise CorruptImage(f"an array of shape {list(values.shape)}, not [H, W] or [H, W, C]")
    counts = {image.channels, image.num_colors} | ({1, 3} if image.num_colors in (1, 3) else set())
    is_last, is_first = values.shape[2] in counts, values.shape[0] in counts
    if is_last and is_first and min(values.shape[:2]) <= max(counts) and values.shape[2] != 1:
        raise CorruptImage(f"an array of shape {list(values.shape)}: [H, W, C] or [C, H, W]?")
    if not is_last and is_first:
        return values.transpose(1, 2, 0), ("channels first",)
    if not is_last:
        raise wrong_count(values.shape[2] if values.shape[2] <= values.shape[0] else values.shape[0], image)
    return values, ()


def tiff_layout(data: bytes) -> TiffLayout | None:
    """Return what a TIFF holds; None for other files, and where its directory cannot be read."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16 or struct.unpack_from(order + "H", data, 2)[0] not in (42, 43):
        return None
    try:
        tags, next_at = _tags(data, order)
    except struct.error:
        return None
    (samples, *_), extra = tags.get(_SAMPLES, [1]), tags.get(_EXTRA, [])
    photometric = tags.get(_PHOTOMETRIC, [1])[0]
    colors = _COLORS.get(photometric, 1)
    has_alpha = extra in ([1], [2]) and samples == colors + 1 and photometric != _CMYK
    return TiffLayout(
        samples,
        max(tags.get(_BITS, [1])),
        3 in tags.get(_FORMAT, [1]),
        has_alpha,
        samples == colors + has_alpha,
        next_at > 0,
    )


def _tags(data: bytes, order: str) -> tuple[dict[int, list[int]], int]:
    """Return the numbers of a TIFF's first directory that are read here, and where the next directory is."""
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    place, entry, inline = ("Q", 20, 8) if is_big else ("I", 12, 4)

    def number(code: str, at: int) -> int:
        return int(struct.unpack_from(order + code, data, at)[0])

    at = number(place, 8 if is_big else 4)
    num = number("Q" if is_big else "H", at)
    at += 8 if is_big else 2
    if num > MAX_TAGS:
        return {}, 0
    tags: dict[int, list[int]] = {}
    for first in range(at, at + num * entry, entry):
        tag, kind, count = number("H", first), number("H", first + 2), number(place, first + 4)
        code = _CODES.get(kind, "")
        if code and tag in (_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _FORMAT) and 0 < count <= 256:
            value_at = first + entry - inline
            if struct.calcsize(code) * count > inline:
                value_at = number(place, value_at)
            tags[tag] = list(struct.unpack_from(f"{order}{count}{code}", data, value_at))
    return tags, number(place, at + num * entry)


def needs_tifffile(layout: TiffLayout | None, image: ImageSpec) -> bool:
    """Return whether Pillow would not give a TIFF's numbers as they are."""
    if layout is None:
        return False
    if not layout.has_known_colors or layout.bits > 32:
        return True
    if layout.samples == 1:
        return layout.has_more_pages and image.num_colors not in (1, 3)  # a page for each channel
    return layout.is_float or layout.bits > 16 or (layout.bits > 8 and image.dtype != "uint8")


def read_tiff(
    data: bytes, layout: TiffLayout, image: ImageSpec, max_pixels: int, memory: MemoryBudget, hold: contextlib.ExitStack
) -> StoredPixels:
    """Read a TIFF of any bands and depth; where it has one band, its pages may be the channels of `image`.

    Raises:
        CorruptImage: No such TIFF, or one that needs a package which is not installed.
    """
    if importlib.util.find_spec("tifffile") is None:
        raise CorruptImage(
            f"a TIFF of {layout.samples} channel(s) of {layout.bits} bits needs tifffile: pip install 'distgan[tiff]'"
        )
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong, it raises too
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages: list[tifffile.TiffPage | tifffile.TiffFrame] = [file.pages.first]
            if layout.samples == 1 and image.num_colors not in (1, 3) and len(file.pages) == image.channels:
                pages = list(file.pages)
            arrays = [_page(data, page, max_pixels, len(pages), memory, hold) for page in pages]
    except CorruptImage:
        raise
    except Exception as error:  # tifffile raises of every kind on corrupt files
        if "imagecodecs" in str(error):
            raise CorruptImage("a TIFF whose compression needs imagecodecs: pip install imagecodecs") from None
        raise CorruptImage(f"corrupt ({type(error).__name__})") from None
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise CorruptImage("a TIFF of pages of several sizes")
    values = np.concatenate(arrays, axis=2) if len(arrays) > 1 else arrays[0]
    has_alpha = layout.has_alpha or (image.alpha and values.shape[2] == image.channels)
    return StoredPixels(values, has_alpha, notes=("pages as channels",) if len(arrays) > 1 else ())


def _page(
    data: bytes,
    page: "tifffile.TiffPage | tifffile.TiffFrame",
    max_pixels: int,
    num_pages: int,
    memory: MemoryBudget,
    hold: contextlib.ExitStack,
) -> np.ndarray:
    """Read one page as [H, W, bands] within bounds: no more is inflated than it has pixels for."""
    page = page.aspage()
    height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
    if height * width > max_pixels:
        raise TooLarge(max_pixels)
    if min(height, width, bands) < 1:
        raise CorruptImage("a TIFF without pixels")
    if page.imagedepth != 1 or page.dtype is None or page.dtype.kind not in "biuf":
        raise CorruptImage(f"a TIFF of {page.dtype}, depth {page.imagedepth}")
    segment = prod(page.chunks) * page.dtype.itemsize
    if max(height * width * bands * page.dtype.itemsize * num_pages, segment) > MAX_BYTES:
        raise CorruptImage(f"a TIFF of more than {MAX_BYTES >> 20} MiB of pixels")
    hold.enter_context(memory.reserve(VALUE_BYTES * height * width * bands))
    if page.compression in (*_DEFLATE, _LZMA):
        for start, length in zip(page.dataoffsets, page.databytecounts):
            if page.compression == _LZMA or length > SMALL_SEGMENT:
                inflate = lzma.LZMADecompressor() if page.compression == _LZMA else zlib.decompressobj()
                if len(inflate.decompress(data[start : start + length], segment + 1)) > segment:
                    raise CorruptImage("a TIFF that inflates to more than its pixels")
    values = page.asarray()
    values = values.transpose(1, 2, 0) if page.axes == "SYX" else values.reshape(height, width, bands)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
