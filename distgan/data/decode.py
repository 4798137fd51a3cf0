"""Decode image bytes to the channels and values of an `ImageSpec`, by one rule for every format and decoder.

JPEG goes through libjpeg-turbo directly, which gives Pillow's bits for gray and color (CMYK may differ by one level of
255), does not hold Python's lock, and refuses corrupt data; arrays and TIFFs of many bands have readers of their own;
everything else goes through Pillow. What a file is, its first bytes tell, not its name.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg
from PIL import Image

from distgan.data import array_image, image_structure
from distgan.data.channels import DecodedImage, StoredPixels, check_count, convert, extent, wrong_count
from distgan.data.host_transforms import MIDDLE, TransformStep
from distgan.data.image_format import MAX_PIXELS, CorruptImage, Range, TooLarge, open_image, silence_pillow
from distgan.data.memory_budget import MemoryBudget
from distgan.data.pillow_image import ORIENTATION, TURNS, load, to_8_bits, to_deep, upright
from distgan.data.resize import fit
from distgan.image_spec import ImageSpec, square

RGB = square(1)  # 8-bit colors, of any size
JPEG = b"\xff\xd8\xff"
GRAY_FROM = ("Gray", "YCbCr")  # colors of a JPEG that have their gray in one of the stored channels
JPEG_BYTES, SCANS_BYTES = 6, 12  # of memory for each pixel of a JPEG; of one in several scans
PIXEL_BYTES = 32  # of memory for each pixel of another format, whose alpha and 16 bits take most


@dataclass(frozen=True)
class DecodeOptions:
    """The rule by which images of any kind become those of one spec.

    Attributes:
        image: Channels, size and values of the result.
        filter: Resampling filter: "lanczos", "area" or "bicubic".
        crop: How other proportions are met, one of `resize.CROPS`; "random" takes the center where no place is given.
        max_pixels: Larger images count as corrupt.
        background: Gray level from 0 to 255 under transparent pixels, and of bars.
        scaled: Skip the finest frequencies of a JPEG that is at least four times as large, which the resize would
            remove; what is decoded is still twice as large as the result. Not with `transforms`, which see all pixels.
        transforms: Changes of the decoded image, in this order, before it is brought to its size.
    """

    image: ImageSpec
    filter: str = "lanczos"
    crop: str = "center"
    max_pixels: int = MAX_PIXELS
    background: int = 255
    scaled: bool = False
    transforms: tuple[TransformStep, ...] = ()


def decode(
    data: bytes | list[bytes],
    *,
    image: ImageSpec = RGB,
    max_pixels: int = MAX_PIXELS,
    background: int = 255,
    least: tuple[int, int] = (0, 0),
    value_range: Range | None = None,
    measure: bool = False,
    hold: contextlib.ExitStack | None = None,
) -> DecodedImage:
    """Decode an image of any common format.

    Orientation marks are applied, transparent pixels lie on a `background` of that gray level unless alpha is asked
    for, gray and colors become each other, CMYK becomes colors, and of an animation the first frame is taken. Where 8
    bits are asked for, 16 become 8 by scaling; else numbers keep their units, but that 8-bit levels become 16-bit ones.

    Args:
        data: A file, or several of one size, whose channels are stacked; none of these is alpha.
        image: Channels and values that are asked for; its size does not matter.
        least: Decode a JPEG at the smallest fraction in eighths, at most a half, at which height and width are not
            smaller than these; 0: as it is.
        value_range: Where 8 bits are asked for: stored values that become black and white, of any depth; those beyond
            are clipped. None: 0 and the largest value of the format, which is 65535 for whole numbers of more than 8
            bits.
        measure: Find the lowest and highest value that is stored.
        hold: Keeps the image's part of the memory that all share until it is closed, for what comes after decoding.

    Raises:
        CorruptImage: no image, a corrupt one, one of more than `max_pixels` pixels (checked before decoding), one of
            other channels, or one of floating-point numbers where 8 bits are asked for and no `value_range` is given.
    """
    if not data:
        raise CorruptImage("empty file")
    if isinstance(data, list):
        return _decode_stack(data, image, max_pixels, background, measure, hold)
    with contextlib.ExitStack() as own:
        hold = hold or own
        if data.startswith(JPEG):
            return _decode_jpeg(data, image, max_pixels, least, value_range, hold)
        if array_image.is_array(data):
            stored = array_image.read_npy(data, image, max_pixels, _memory, hold)
            return _converted(stored, image, background, value_range)
        layout = array_image.tiff_layout(data)
        if layout is not None and array_image.needs_tifffile(layout, image):
            stored = array_image.read_tiff(data, layout, image, max_pixels, _memory, hold)
            return _converted(stored, image, background, value_range)
        return _decode_with_pillow(data, image, max_pixels, background, value_range, measure, hold)


def decode_array(
    values: np.ndarray, image: ImageSpec = RGB, background: int = 255, value_range: Range | None = None
) -> DecodedImage:
    """Return an array [H, W, C] of numbers as an image, as `decode` does with a file of it. Raises CorruptImage."""
    has_alpha = image.alpha and values.shape[2] == image.channels
    return _converted(StoredPixels(values, has_alpha), image, background, value_range)


def _converted(stored: StoredPixels, image: ImageSpec, background: int, value_range: Range | None) -> DecodedImage:
    """Return stored numbers as pixels of `image`; of more than 8 bits, with the values that they had."""
    pixels, notes = convert(stored, image, background, value_range)
    colors = stored.values[..., : stored.values.shape[2] - stored.has_alpha]
    return DecodedImage(pixels, notes, None if colors.dtype in (np.uint8, np.bool_) else extent(colors))


def _decode_with_pillow(
    data: bytes,
    spec: ImageSpec,
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
        is_deep = spec.dtype != "uint8"
        colors = load(image, data if measure or value_range or is_deep else b"")
        if is_deep:
            return to_deep(image, spec, background, colors)
        return to_8_bits(image, spec, background, colors, value_range)
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


def _decode_stack(
    files: list[bytes],
    image: ImageSpec,
    max_pixels: int,
    background: int,
    measure: bool,
    hold: contextlib.ExitStack | None,
) -> DecodedImage:
    """Decode several files as one image, with their channels one after the other."""
    counts = [_stored_colors(data) for data in files]
    if image.alpha or sum(counts) != image.channels:
        raise wrong_count(sum(counts), image)
    parts = [
        decode(
            data,
            image=replace(image, channels=count),
            max_pixels=max_pixels,
            background=background,
            measure=measure,
            hold=hold,
        )
        for data, count in zip(files, counts)
    ]
    sizes = {part.pixels.shape[:2] for part in parts}
    if len(sizes) > 1:
        raise CorruptImage(f"parts of {' and '.join(f'{width}x{height}' for height, width in sorted(sizes))} pixels")
    bounds = [part.values for part in parts if part.values is not None]
    return DecodedImage(
        np.concatenate([part.pixels for part in parts], axis=2),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None,
    )


def _stored_colors(data: bytes) -> int:
    """Return the channels of a file without alpha, from its header. Raises CorruptImage."""
    try:
        if data.startswith(JPEG):
            return 1 if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else 3
        if array_image.is_array(data):
            shape = array_image.parse_npy(data).shape
            return 1 if len(shape) == 2 else min(shape[0], shape[-1])
        if layout := array_image.tiff_layout(data):
            return layout.samples - layout.has_alpha
        mode = open_image(data).mode
        return 1 if mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16") else 3
    except Exception:  # of a corrupt file, which decoding says
        return 1


def decode_into(
    data: bytes | list[bytes],
    out: np.ndarray,
    options: DecodeOptions,
    place: float | None = None,
    draws: Sequence[np.ndarray] | None = None,
) -> bool:
    """Decode an image into `out`, [H, W, C] of `options.image`; returns whether it had to be resized for that.

    Args:
        place: Where a random crop is, from 0 to below 1; None: the center.
        draws: The numbers of each transform; None: each is 0.5.
    """
    image = options.image
    if (
        isinstance(data, bytes)
        and data.startswith(JPEG)
        and image.dtype == "uint8"
        and image.channels in (1, 3)
        and not options.transforms
        and not _may_be_turned(data)
    ):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == out.shape[:2] and (image.channels == 3 or colors in GRAY_FROM):
                reason, has_scans = image_structure.jpeg_objection(data)
                if reason:
                    raise CorruptImage(reason)
                with _memory.reserve(height * width * (SCANS_BYTES if has_scans else 0)):
                    simplejpeg.decode_jpeg(data, "RGB" if image.channels == 3 else "GRAY", buffer=out)
                return False
        except ValueError:
            pass  # `decode` says why
    with contextlib.ExitStack() as hold:
        least = (2 * image.height, 2 * image.width) if options.scaled and not options.transforms else (0, 0)
        pixels = decode(
            data, image=image, max_pixels=options.max_pixels, background=options.background, least=least, hold=hold
        ).pixels
        for number, transform in enumerate(options.transforms):
            drawn = np.full(transform.num_draws, MIDDLE, np.float32) if draws is None else draws[number]
            pixels = transform(pixels, drawn)
        if pixels.shape == out.shape:
            out[:] = pixels
            return False
        out[:] = fit(pixels, image, options.filter, options.crop, background=options.background, place=place)
        return not options.transforms  # which may crop: their size says nothing about the stored one


def _decode_jpeg(
    data: bytes,
    image: ImageSpec,
    max_pixels: int,
    least: tuple[int, int],
    value_range: Range | None,
    hold: contextlib.ExitStack,
) -> DecodedImage:
    reason, has_scans = image_structure.jpeg_objection(data)
    if reason:
        raise CorruptImage(reason)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        check_count(1 if colors == "Gray" else 3, False, image)
        hold.enter_context(_memory.reserve((SCANS_BYTES if has_scans else JPEG_BYTES) * width * height))
        fraction = {}
        if min(least) > 0 and height >= 2 * least[0] and width >= 2 * least[1]:
            fraction = {"min_height": least[0], "min_width": least[1], "min_factor": 2}
        is_gray = image.num_colors == 1 and colors in GRAY_FROM
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if is_gray else "RGB", **fraction)
    except ValueError:
        raise CorruptImage("corrupt") from None
    notes: tuple[str, ...] = ()
    if _may_be_turned(data) and (orientation := _orientation(data)) in TURNS:
        pixels, notes = upright(pixels, orientation), ("turned upright",)
    if image.dtype == "uint8" and image.channels == pixels.shape[2] and value_range is None:
        return DecodedImage(pixels, notes)
    pixels, more = convert(StoredPixels(pixels, is_levels=True), image, value_range=value_range)
    return DecodedImage(pixels, notes + more)


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
