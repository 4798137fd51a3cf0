"""Curves laid out on a pair of axes: one drawing for the report's page, for .svg files and for .png files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distgan.storage.formatting import short_number
from distgan.tools.report.curves import COLORS, HUGE, drawable
from distgan.tools.report.history import Series

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 24  # margins
FEW = 30  # points, of which each is shown
Band = tuple[Series, Series] | None


@dataclass(frozen=True)
class Curve:
    """A name, a color, and points in pixels; `band`: the corners of an area around it, of several runs."""

    name: str
    color: str
    points: list[tuple[float, float]]
    band: list[tuple[float, float]] = field(default_factory=list)

    @property
    def has_dots(self) -> bool:
        return len(self.points) < FEW


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes, in pixels from the upper left corner of WIDTH x HEIGHT.

    Attributes:
        x_ticks, y_ticks: Position and text of each label.
        x_range, y_range: Values at the ends of the axes; of a logarithmic axis, the exponents of ten.
    """

    curves: list[Curve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool

    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM  # of the axes


def lay_out(curves: Sequence[tuple[str, Series]], log: bool = False, bands: Sequence[Band] = ()) -> Chart:
    """Lay out named curves over thousands of images.

    Args:
        log: Whether the axis of values is logarithmic, which cannot show what is not above 0.
        bands: For each curve, the lower and the upper bound of the area around it, or None.
    """
    above = 0 if log else -HUGE
    shown = [(name, drawable(curve, above)) for name, curve in curves]
    edges = [[drawable(edge, above) for edge in band or ()] for band in bands or [None] * len(shown)]
    all_curves = [*(curve for _, curve in shown), *(edge for band in edges for edge in band)]
    values = [value for curve in all_curves for value in curve.values]
    kimg = [at for curve in all_curves for at in curve.kimg]
    if not values:
        return Chart([], [(WIDTH / 2, "no numbers")], [], (0.0, 1.0), (0.0, 1.0), log)
    scale: Callable[[float], float] = math.log10 if log else float
    x0, x1 = _range(min(kimg), max(kimg), pad=0.0)
    y0, y1 = _range(scale(min(values)), scale(max(values)), pad=0.06)

    def x(at: float) -> float:
        return LEFT + (at - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (scale(value) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    def points(curve: Series) -> list[tuple[float, float]]:
        return [(x(at), y(value)) for at, value in zip(curve.kimg, curve.values)]

    def area(band: Sequence[Series]) -> list[tuple[float, float]]:
        low, high = band if band else (Series(), Series())
        return points(low) + points(high)[::-1]

    return Chart(
        [
            Curve(name, COLORS[i % len(COLORS)], points(curve), area(band))
            for i, ((name, curve), band) in enumerate(zip(shown, edges))
        ],
        [(LEFT - 18, "kimg"), *((x(at), short_number(at)) for at in ticks(x0, x1))],
        [(y(value), short_number(value)) for value in (_log_ticks(y0, y1) if log else ticks(y0, y1))],
        (x0, x1),
        (y0, y1),
        log,
    )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers between two others, about so many."""
    step = (high - low) / about
    power = 10.0 ** math.floor(math.log10(step))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / step)))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between 10**low and 10**high, and some numbers between them where they are few."""
    first, last = max(-300, math.floor(low)), min(300, math.ceil(high))
    every = max(1, round((last - first) / 5))
    factors = (1,) if last - first > 2 else (1, 2, 5)
    found = [m * 10.0**power for power in range(first, last, every) for m in factors]
    return [value for value in found if low <= math.log10(value) <= high]


def _range(low: float, high: float, pad: float) -> tuple[float, float]:
    """Return a range with some room, and never empty."""
    room = (high - low) * pad
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 0.5
    return low - room, high + room
