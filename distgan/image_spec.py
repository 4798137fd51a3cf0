"""The images of a run: their channels, size and values, which every part of the program is told by one object."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

DType = Literal["uint8", "uint16", "float32"]
LEVELS = {"uint8": 255, "uint16": 65535}  # largest value of the whole numbers
MAX_CHANNELS = 32
START_SIDES = range(3, 33)  # sides that the grid of a network's first stage may have
# What families need of both sides: to be multiples of a number, and at least another. Hourglass has no start grid: its
# D halves the sides five times. What is restored is measured by windows of 11 pixels and degraded in squares of 16.
MULTIPLES = {"hourglass": 32}
LEAST_SIDES = {"hourglass": 32, "restore": 16}


@dataclass(frozen=True)
class ImageSpec:
    """Channels, size and values of images.

    Networks see them as float [B, C, H, W] where `low` is -1 and `high` is 1. On the host, and as a generator's
    output, they are arrays [H, W, C] of `dtype`.

    Attributes:
        height, width: H and W in pixels.
        channels: C, from 1 to 32; `alpha` says whether the last one is transparency.
        dtype: "uint8", "uint16" or "float32".
        low, high: Values that become -1 and 1; those beyond are clipped. Both 0: the levels of `dtype`.

    Raises:
        ValueError: There are no such images.
    """

    height: int
    width: int
    channels: int = 3
    dtype: DType = "uint8"
    low: float = 0.0
    high: float = 0.0
    alpha: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DType):
            raise ValueError(f"values of the kind {self.dtype!r}: choose one of {', '.join(get_args(DType))}")
        if self.low == self.high == 0 and self.dtype in LEVELS:
            object.__setattr__(self, "high", float(LEVELS[self.dtype]))
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(f"{self.channels} channels: 1 to {MAX_CHANNELS}")
        if self.alpha and self.channels not in (2, 4):
            raise ValueError(f"{self.channels} channels of which one is alpha: 2 (gray) or 4 (colors)")
        if min(self.height, self.width) < 1:
            raise ValueError(f"images of {self.width}x{self.height} pixels")
        if not self.low < self.high:
            raise ValueError(f"a range from {self.low:.15g} to {self.high:.15g}: the second value must be larger")
        if error := range_error(self.dtype, self.low, self.high):
            raise ValueError(error)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, W, C), the shape of one image on the host."""
        return self.height, self.width, self.channels

    @property
    def size(self) -> str:
        """Return the size as text, "64x48": width first, as all texts for readers have it."""
        return f"{self.width}x{self.height}"

    @property
    def resolution(self) -> int | list[int]:
        """Return the size as a config or a card holds it: a side, or [height, width]."""
        return self.height if self.height == self.width else [self.height, self.width]

    @property
    def setting(self) -> str:
        """Return the size as `data.resolution` is given: "64" of a square, else "[H,W]"."""
        return size_setting(self.height, self.width)

    @property
    def is_rgb8(self) -> bool:
        """Return whether the images are colors in 8 bits, all levels used: what a PNG shows as it is."""
        return (self.channels, self.dtype, self.low, self.high) == (3, "uint8", 0, 255)

    @property
    def has_all_levels(self) -> bool:
        """Return whether the range is that of all values of the dtype, so that none is clipped."""
        return (self.low, self.high) == (0, LEVELS.get(self.dtype))

    @property
    def num_colors(self) -> int:
        """Return the number of channels without alpha."""
        return self.channels - self.alpha

    @property
    def num_bytes(self) -> int:
        """Return the bytes of one image on the host."""
        return self.height * self.width * self.channels * {"uint8": 1, "uint16": 2, "float32": 4}[self.dtype]

    @property
    def half_range(self) -> float:
        """Return half of the distance from `low` to `high`, which is 1 for the networks."""
        return (self.high - self.low) / 2

    @property
    def doublings(self) -> int:
        """Return how often networks double the sides of their start grid."""
        return _num_doublings(self.height, self.width)

    @property
    def start_grid(self) -> tuple[int, int]:
        """Return H and W of the start grid, the first stage of G and the last one of D: (4, 4) of 2^n pixels."""
        return self.height >> self.doublings, self.width >> self.doublings


def range_error(dtype: str, low: float, high: float) -> str:
    """Return why values of a dtype cannot be between `low` and `high`; "" where they can."""
    if dtype not in LEVELS or (low == int(low) >= 0 and high == int(high) <= LEVELS[dtype]):
        return ""
    return f"a range from {low:.15g} to {high:.15g}: {dtype} has the whole numbers from 0 to {LEVELS[dtype]}"


def square(side: int, channels: int = 3) -> ImageSpec:
    """Return the spec of square images of 8-bit levels."""
    return ImageSpec(side, side, channels)


def size_setting(height: int, width: int) -> str:
    """Return a size as `data.resolution` has it: "64" of a square, else "[H,W]"."""
    return f"{height}" if height == width else f"[{height},{width}]"


def size_error(family: str, height: int, width: int) -> str:
    """Return why a family cannot make images of this size, with the nearest sizes that it can; "" where it can."""
    if _fits(family, height, width):
        return ""
    if family in MULTIPLES:
        needs = f"multiples of {MULTIPLES[family]} pixels on both sides"
    else:
        needs = (
            f"sides of k x 2^n pixels, n at least 1 and the same for both, k from {START_SIDES[0]} to {START_SIDES[-1]}"
        )
        if family in LEAST_SIDES:
            needs += f", and {LEAST_SIDES[family]} pixels at least"
    sizes = nearest(height, width, lambda *size: _fits(family, *size), LEAST_SIDES.get(family, 1))
    return (
        f"data.resolution={size_setting(height, width)}: the {family} networks need {needs}, such as "
        f"{' or '.join(size_setting(*size) for size in sizes)}"
    )


def check_size(family: str, image: ImageSpec) -> None:
    """Refuse images of a size that a family cannot make. Raises ValueError."""
    if error := size_error(family, image.height, image.width):
        raise ValueError(error)


def patches_error(patches: int, image: ImageSpec) -> str:
    """Return why a discriminator cannot give so many logits along the height, or "" where it can."""
    allowed = [1] + [image.height >> i for i in range(image.doublings, 0, -1)]
    return "" if patches in allowed else f"the logits along the height must be one of {', '.join(map(str, allowed))}"


def nearest(height: int, width: int, fits: Callable[[int, int], bool], least: int = 1) -> list[tuple[int, int]]:
    """Return the two sizes that fit with the fewest pixels added or taken at the sides; squares for a square.

    Args:
        fits: Tells whether a height and a width fit; no side below `least` does.
    """
    found: set[tuple[int, int]] = set()
    for num in range(1, 11):
        heights, widths = (_near(max(side, least), num) for side in (height, width))
        found |= {(h, w) for h in heights for w in widths if (h == w or height != width) and fits(h, w)}
    return sorted(found, key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size))[:2]


def _num_doublings(height: int, width: int) -> int:
    """Return how often both sides can be halved, down to 3 pixels at least: 4 for 64x64, 7 for 640x384."""
    num = 0
    while min(height, width) >> num + 1 >= START_SIDES[0] and not (height >> num) % 2 and not (width >> num) % 2:
        num += 1
    return num


def _near(side: int, num: int) -> set[int]:
    """Return the multiples of 2^num around a side, and those that are nearest to it among the sides of networks."""
    below = side >> num
    multiples = {below, below + 1} | {min(max(k, START_SIDES[0]), START_SIDES[-1]) for k in (below, below + 1)}
    return {k << num for k in multiples if k}


def _fits(family: str, height: int, width: int) -> bool:
    """Return whether a family's networks can make images of this size."""
    if min(height, width) < LEAST_SIDES.get(family, 1):
        return False
    if family in MULTIPLES:
        return height % MULTIPLES[family] == 0 == width % MULTIPLES[family]
    num = _num_doublings(height, width)
    return num > 0 and all(side >> num in START_SIDES for side in (height, width))
