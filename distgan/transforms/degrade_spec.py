"""Kinds of degradation, their strengths and bounds, and how a config writes them.

`restore.degrade` is a list of steps that are applied in turn: `{blur: [0.5, 2]}` draws a strength between the two for
each image, `{noise: 25}` always has the same strength, and `{jpeg: [30, 90], p: 0.5}` is applied to half of the images.
`degrade` applies them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distgan.image_spec import ImageSpec


@dataclass(frozen=True)
class Kind:
    """A kind of degradation: the meaning of its strength, and the lowest and the highest strength allowed.

    Attributes:
        high_in_sides: Whether `high` is a fraction of the image's shorter side, not a strength.
        is_power: Whether a strength must be a power of two that divides both sides.
        colors: Numbers of channels that it is defined for; empty: any.
        spares_alpha: Whether images may have transparency beside the channels in `colors`.
    """

    unit: str
    low: float
    high: float
    high_in_sides: bool = False
    is_power: bool = False
    colors: tuple[int, ...] = ()
    spares_alpha: bool = True


KINDS: dict[str, Kind] = {
    "noise": Kind("standard deviation of Gaussian noise, in levels of 0..255", 0, 255),
    "shot": Kind("photons that a white pixel counts (Poisson noise)", 1, 100_000),
    "blur": Kind("standard deviation of a Gaussian blur, in pixels", 0.05, 1 / 4, high_in_sides=True),
    "downsample": Kind("how many times smaller both sides become, a power of two", 2, 1 / 2, True, is_power=True),
    "jpeg": Kind("quality of JPEG compression", 1, 100, colors=(1, 3), spares_alpha=False),
    "box": Kind("side of a gray square, as a share of the image's shorter one", 0.01, 0.9),
    "strokes": Kind("width of gray brush strokes, as a share of the image's shorter side", 0.01, 0.5),
    "grey": Kind("how far colors go to gray", 0, 1, colors=(3,)),
}


@dataclass(frozen=True)
class Step:
    """One step of degradation, with a strength drawn between `low` and `high`, applied with probability `p`."""

    kind: str
    low: float
    high: float
    p: float = 1.0


def parse(items: Sequence[dict], image: ImageSpec) -> list[Step]:
    """Return the steps that a config's list of degradations describes, for images of this spec.

    Raises:
        ValueError: An item is wrong; the message says where and what is allowed, e.g. "[1]: blur=[2, 40]: ...".
    """
    return [_parse_one(item, f"[{number}]", image) for number, item in enumerate(items)]


def _parse_one(item: dict, where: str, image: ImageSpec) -> Step:
    kinds = [name for name in item if name != "p"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise ValueError(
            f"{where}={item}: a step is one of {', '.join(KINDS)} with its strength, and perhaps p, "
            "as in {noise: 25, p: 0.5}"
        )
    name, p = kinds[0], item.get("p", 1.0)
    kind, value = KINDS[name], item[name]
    if not _is_number(p) or not 0 < p <= 1:
        raise ValueError(f"{where}.p={p}: the share of images that this is done to, above 0 and up to 1")
    ends = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(ends) != 2 or not all(map(_is_number, ends)) or ends[0] > ends[1]:
        raise ValueError(f"{where}: {name}={value}: a number, or [lowest, highest]: {kind.unit}")
    if kind.colors and (image.num_colors not in kind.colors or (image.alpha and not kind.spares_alpha)):
        alpha = f", {'beside' if kind.spares_alpha else 'without'} transparency" if image.alpha else ""
        raise ValueError(
            f"{where}: {name} is defined for images of {' or '.join(map(str, kind.colors))} channels{alpha}, and these "
            f"have {image.channels}: leave it out"
        )
    high = kind.high * min(image.height, image.width) if kind.high_in_sides else kind.high
    if kind.is_power:  # the largest power of two that divides a number is its lowest bit
        sides = math.gcd(image.height, image.width)
        high = min(high, sides & -sides)
    if not kind.low <= ends[0] <= ends[1] <= high:
        at = f" at data.resolution={image.setting}" if kind.high_in_sides else ""
        raise ValueError(f"{where}: {name}={value} is impossible{at}: {kind.unit}, from {kind.low:g} to {high:g}")
    if kind.is_power and any(math.log2(end) % 1 for end in ends):
        raise ValueError(f"{where}: {name}={value}: {kind.unit}, from {kind.low:g} to {high:g}")
    return Step(name, float(ends[0]), float(ends[1]), float(p))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
