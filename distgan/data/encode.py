"""One image to be packed: read, decoded, fitted to one size and encoded, or the reason why it is left out.

An image becomes a PNG (or WebP, JPEG) where that holds its numbers, else an array (.npy) of its own type.
"""

import contextlib
import math
from dataclasses import dataclass

import numpy as np

from distgan.data import image_file
from distgan.data.channels import DecodedImage
from distgan.data.decode import decode, decode_array
from distgan.data.image_format import MAX_PIXELS, CorruptImage, TooLarge
from distgan.data.pack_entry import InputEntry, read_entry
from distgan.data.resize import CROPS, FILTERS, cropped, fit
from distgan.errors import ConfigError
from distgan.image_spec import DType, ImageSpec
from distgan.rng import host_rng
from distgan.storage.formatting import whole_number

CHUNK_BYTES = 2**24  # of images that travel to a process, or back, together
SAMPLED = 64  # values of each image by which the set's quantiles are known


@dataclass(frozen=True)
class PackOptions:
    """The format of stored images.

    Attributes:
        resolution: Side in pixels, or (height, width); 0 keeps each image's own size.
        crop: How other proportions are met, one of `resize.CROPS`; "random" is another place for each image.
        filter: Resampling filter: "lanczos", "area" or "bicubic".
        image: "png" or "webp" (both lossless), or "jpg"; what none of these holds is stored as an array.
        quality: Of jpg.
        background: Gray level under transparent pixels.
        max_pixels: Larger images are skipped.
        range: Of uint8: stored values that become black and white; None: 0 and the largest value of the format. Of
            deeper images, whose numbers stay as they are: what training should see as black and white, for the card.
        channels, dtype, alpha: Channels of an image, type of its numbers, and whether the last channel is alpha.
    """

    resolution: int | tuple[int, int] = 0
    crop: str = "center"
    filter: str = "lanczos"
    image: str = "png"
    quality: int = 95
    background: int = 255
    max_pixels: int = MAX_PIXELS
    range: tuple[float, float] | None = None
    channels: int = 3
    dtype: DType = "uint8"
    alpha: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("crop", CROPS), ("filter", FILTERS), ("image", image_file.FORMATS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name} {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.resolution and not 1 <= min(self.height, self.width) <= max(self.height, self.width) <= 8192:
            raise ConfigError(f"--resolution {self.height}x{self.width}: 1 to 8192 pixels, or 0 for each image's own")
        if not 1 <= self.max_pixels <= 178_000_000:
            raise ConfigError(f"--max-pixels {self.max_pixels}: 1 to 178,000,000, which is where Pillow stops")
        for name, low, high in (("quality", 1, 100), ("background", 0, 255)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"--{name} {getattr(self, name)}: {low} to {high}")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            black, white = map(whole_number, self.range)
            raise ConfigError(f"--range {black} {white}: the first value becomes black, the second, larger one white")
        try:
            self.spec  # noqa: B018 (which refuses what there is not)
        except ValueError as error:
            raise ConfigError(f"--channels {self.channels} --dtype {self.dtype}: {error}") from None
        if self.image == "jpg" and (self.suffix == "npy" or self.alpha):
            raise ConfigError("--image jpg holds 8-bit gray or colors without alpha: leave it out")
        if self.crop == "pad" and self.dtype == "float32" and self.range is None and not self.alpha:
            raise ConfigError("--crop pad --dtype float32: --range says which value the background has")

    @property
    def height(self) -> int:
        """Return the height of all images; 0 where each keeps its own."""
        return self.resolution if isinstance(self.resolution, int) else self.resolution[0]

    @property
    def width(self) -> int:
        """Return the width of all images; 0 where each keeps its own."""
        return self.resolution if isinstance(self.resolution, int) else self.resolution[1]

    @property
    def spec(self) -> ImageSpec:
        """Return what images become; of 1 pixel where each keeps its own size."""
        low, high = (0.0, 1.0) if self.dtype == "float32" else (0.0, 0.0)
        if self.range is not None and self.dtype != "uint8" and not self.alpha:
            low, high = self.range
        return ImageSpec(self.height or 1, self.width or 1, self.channels, self.dtype, low, high, self.alpha)

    @property
    def suffix(self) -> str:
        """Return the suffix of a stored image: of its format where that holds its numbers, else npy."""
        return image_file.suffix(self.spec, self.image)

    @property
    def is_plain(self) -> bool:
        """Return whether images have three channels of 8 bits, and one side where they have one size."""
        return self.channels == 3 and self.dtype == "uint8" and self.height == self.width


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
    sampled: np.ndarray | None = None  # some of the values, of deeper images
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
    stored = _encode_one(entry, options, entry.name)
    if entry.degraded is None or stored.skipped:
        return stored
    other = _encode_one(entry.degraded, options, entry.name)
    if other.skipped:
        return StoredImage(skipped=f"degraded image: {other.skipped}")
    (width, height), (other_width, other_height) = stored.shape, other.shape
    if abs(width * other_height - other_width * height) > max(width, height, other_width, other_height):
        return StoredImage(skipped="the degraded image has other proportions")
    stored.degraded = other.data
    stored.notes += tuple(note for note in other.notes if note not in stored.notes)
    return stored


def _encode_one(entry: InputEntry, options: PackOptions, name: str) -> StoredImage:
    """Read, decode, fit and encode one image; `name` alone decides where a random crop is."""
    with contextlib.ExitStack() as hold:  # the memory that it takes, until it is encoded
        try:
            decoded = _read_image(entry, options, hold)
        except TooLarge:
            return StoredImage(skipped=f"more than --max-pixels {options.max_pixels}")
        except CorruptImage as reason:
            skipped = str(reason).replace("data.alpha=channel", "--alpha").replace("data.", "--")
            return StoredImage(skipped=skipped, values=reason.values)
        except OSError as error:
            return StoredImage(skipped=f"unreadable ({error.strerror or error})")
        return _fit_and_save(decoded, options, name)


def _read_image(entry: InputEntry, options: PackOptions, hold: contextlib.ExitStack) -> DecodedImage:
    """Read and decode one image. Raises TooLarge, CorruptImage or OSError."""
    content = read_entry(entry)
    spec, value_range = options.spec, options.range if options.dtype == "uint8" else None
    if isinstance(content, bytes):
        return decode(
            content,
            image=spec,
            max_pixels=options.max_pixels,
            background=options.background,
            value_range=value_range,
            measure=True,
            hold=hold,
        )
    if content.shape[0] * content.shape[1] > options.max_pixels:
        raise TooLarge(options.max_pixels)
    return decode_array(content, spec, options.background, value_range)


def _fit_and_save(decoded: DecodedImage, options: PackOptions, name: str) -> StoredImage:
    """Bring a decoded image to its size, and encode it."""
    pixels, notes, cut_away, spec = decoded.pixels, decoded.notes, 0.0, options.spec
    height, width = pixels.shape[:2]
    if options.resolution:
        cut_away = cropped(width, height, spec, options.crop)
        if _is_enlarged(height, width, options):
            notes += ("enlarged",)
        place = float(host_rng.uniform(host_rng.key(0, "crop", name), np.zeros(1, np.int64))[0])
        pixels = fit(pixels, spec, options.filter, options.crop, background=options.background, place=place)
    try:
        data = image_file.to_bytes(pixels, spec, options.suffix, options.quality)
    except (OSError, ValueError):  # WebP ends at 16383 pixels
        return StoredImage(skipped=f"too large for {options.image}")
    sampled = None
    if spec.dtype != "uint8":
        colors = pixels[..., : spec.num_colors].reshape(-1)
        drawn = host_rng.uniform(host_rng.key(0, "values", name), np.arange(SAMPLED))
        sampled = colors[(drawn * len(colors)).astype(np.int64)]
    return StoredImage(
        data,
        size=(pixels.shape[1], pixels.shape[0]),
        shape=(width, height),
        notes=notes,
        values=decoded.values,
        sampled=sampled,
        cut_away=cut_away,
    )


def _is_enlarged(height: int, width: int, options: PackOptions) -> bool:
    """Return whether an image has fewer pixels than it gets, along a side at least."""
    if options.crop == "pad":
        return height < options.height and width < options.width
    return height < options.height or width < options.width
