"""One image to be packed: read, decoded, fitted to one size and encoded, or the reason why it is left out."""

import contextlib
import io
import math
from dataclasses import dataclass

from PIL import Image

from distgan.data.channels import DecodedImage, to_levels
from distgan.data.decode import decode
from distgan.data.image_format import MAX_PIXELS, CorruptImage, TooLarge
from distgan.data.pack_entry import InputEntry, read_entry
from distgan.data.resize import FILTERS, cropped, fit
from distgan.errors import ConfigError
from distgan.image_spec import square

CHUNK_BYTES = 2**24  # of images that travel to a process, or back, together
SAVE: dict[str, tuple[str, dict[str, int]]] = {  # Pillow's name of a format, and its settings
    "png": ("PNG", {"compress_level": 1}),  # level 6 takes four times as long for a tenth of the bytes
    "webp": ("WEBP", {"lossless": True, "method": 0}),
    "jpg": ("JPEG", {"subsampling": 0}),
}


@dataclass(frozen=True)
class PackOptions:
    """The format of stored images.

    Attributes:
        resolution: Side in pixels; 0 keeps each image's own size.
        crop: "center" takes the largest centered square, "stretch" the whole image.
        filter: Resampling filter: "lanczos", "area" or "bicubic".
        image: "png" or "webp" (both lossless), or "jpg".
        quality: Of jpg.
        background: Gray level under transparent pixels.
        max_pixels: Larger images are skipped.
        range: Stored values that become black and white; None: 0 and the largest value of the format.
    """

    resolution: int = 0
    crop: str = "center"
    filter: str = "lanczos"
    image: str = "png"
    quality: int = 95
    background: int = 255
    max_pixels: int = MAX_PIXELS
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("crop", ("center", "stretch")), ("filter", FILTERS), ("image", SAVE)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if not 0 <= self.resolution <= 8192:
            raise ConfigError(f"--resolution {self.resolution}: 1 to 8192 pixels, or 0 for each image's own")
        if not 1 <= self.max_pixels <= 178_000_000:
            raise ConfigError(f"--max-pixels {self.max_pixels}: 1 to 178,000,000, which is where Pillow stops")
        for name, low, high in (("quality", 1, 100), ("background", 0, 255)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"--{name} {getattr(self, name)}: {low} to {high}")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            black, white = self.range
            raise ConfigError(
                f"--range {black:g} {white:g}: the first value becomes black, the second, larger one white"
            )


@dataclass
class StoredImage:
    """The result of encoding one image: its bytes (and those of its degraded form), or why it is left out."""

    data: bytes = b""
    degraded: bytes = b""
    size: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)  # width and height before it was fitted
    notes: tuple[str, ...] = ()
    skipped: str = ""
    values: tuple[float, float] | None = None  # lowest and highest stored, where these are not 8-bit levels
    cut_away: float = 0.0  # share of the image's area that is cropped


def encode_all(entries: list[InputEntry], options: PackOptions) -> list[StoredImage]:
    """Encode the first of these images: all, or as many as may travel back together."""
    images: list[StoredImage] = []
    size = 0
    for entry in entries:
        images.append(_encode(entry, options))
        size += len(images[-1].data) + len(images[-1].degraded)
        if size >= CHUNK_BYTES:
            break
    return images


def _encode(entry: InputEntry, options: PackOptions) -> StoredImage:
    """Encode one image, or both of a pair, of which one alone is of no use."""
    stored = _encode_one(entry, options)
    if entry.degraded is None or stored.skipped:
        return stored
    other = _encode_one(entry.degraded, options)
    if other.skipped:
        return StoredImage(skipped=f"degraded image: {other.skipped}")
    (width, height), (other_width, other_height) = stored.shape, other.shape
    if abs(width * other_height - other_width * height) > max(width, height, other_width, other_height):
        return StoredImage(skipped="the degraded image has other proportions")
    stored.degraded = other.data
    stored.notes += tuple(note for note in other.notes if note not in stored.notes)
    return stored


def _encode_one(entry: InputEntry, options: PackOptions) -> StoredImage:
    """Read, decode, fit and encode one image."""
    with contextlib.ExitStack() as hold:  # the memory that it takes, until it is encoded
        try:
            decoded = _read_image(entry, options, hold)
        except TooLarge:
            return StoredImage(skipped=f"more than --max-pixels {options.max_pixels}")
        except CorruptImage as reason:
            return StoredImage(skipped=str(reason), values=reason.values)
        except OSError as error:
            return StoredImage(skipped=f"unreadable ({error.strerror or error})")
        return _fit_and_save(decoded, options)


def _read_image(entry: InputEntry, options: PackOptions, hold: contextlib.ExitStack) -> DecodedImage:
    """Read and decode one image. Raises TooLarge, CorruptImage or OSError."""
    content = read_entry(entry)
    if isinstance(content, bytes):
        return decode(
            content,
            max_pixels=options.max_pixels,
            background=options.background,
            value_range=options.range,
            measure=True,
            hold=hold,
        )
    if content.shape[0] * content.shape[1] > options.max_pixels:
        raise TooLarge(options.max_pixels)
    return DecodedImage(content if options.range is None else to_levels(content, options.range))


def _fit_and_save(decoded: DecodedImage, options: PackOptions) -> StoredImage:
    """Bring a decoded image to its size, and encode it."""
    pixels, notes, cut_away = decoded.pixels, decoded.notes, 0.0
    height, width = pixels.shape[:2]
    if options.resolution:
        image = square(options.resolution)
        cut_away = cropped(width, height, image, options.crop)
        if min(height, width) < options.resolution:
            notes += ("enlarged",)
        pixels = fit(pixels, image, options.filter, options.crop)
    out = io.BytesIO()
    pillow_format, settings = SAVE[options.image]
    if options.image == "jpg":
        settings = settings | {"quality": options.quality}
    try:
        Image.fromarray(pixels).save(out, pillow_format, **settings)
    except (OSError, ValueError):  # WebP ends at 16383 pixels
        return StoredImage(skipped=f"too large for {options.image}")
    return StoredImage(
        out.getvalue(),
        size=(pixels.shape[1], pixels.shape[0]),
        shape=(width, height),
        notes=notes,
        values=decoded.values,
        cut_away=cut_away,
    )
