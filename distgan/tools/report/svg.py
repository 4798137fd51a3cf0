"""Curves as SVG, drawn by hand: small, sharp at any size, and in the colors of the page that they stand on."""

import math
from collections.abc import Callable, Sequence

from distgan.tools.report.curves import COLOURS, HUGE, drawable
from distgan.tools.report.history import Series
from distgan.tools.report.markup import Markup, tag

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 24  # margins


def chart(curves: Sequence[tuple[str, Series]], *, label: str, log: bool = False) -> Markup:
    """Curves over thousands of images on one pair of axes.

    Args:
        curves: Name and points of each; points that a logarithmic axis cannot show are left out.
        label: What the image shows, for those who cannot see it.
    """
    curves = [(name, drawable(curve, 0 if log else -HUGE)) for name, curve in curves]
    numbers = [value for _, curve in curves for value in curve.values]
    places = [at for _, curve in curves for at in curve.kimg]
    if not numbers:
        return tag("p", "no numbers", class_="none")
    x0, x1 = _span(min(places), max(places), pad=0.0)
    scale: Callable[[float], float] = math.log10 if log else float
    y0, y1 = _span(scale(min(numbers)), scale(max(numbers)), pad=0.06)

    def x(at: float) -> float:
        return LEFT + (at - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (scale(value) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in _log_ticks(y0, y1) if log else ticks(y0, y1):
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=_px(y(value)), y2=_px(y(value)), class_="grid"))
        parts.append(tag("text", number(value), x=LEFT - 6, y=_px(y(value) + 3), text_anchor="end"))
    for at in ticks(x0, x1):
        parts.append(tag("text", number(at), x=_px(x(at)), y=HEIGHT - 8, text_anchor="middle"))
    for i, (name, curve) in enumerate(curves):
        colour, points = COLOURS[i % len(COLOURS)], [(x(at), y(v)) for at, v in zip(curve.kimg, curve.values)]
        if len(points) > 1:
            drawn = " ".join(f"{_px(across)},{_px(down)}" for across, down in points)
            parts.append(tag("polyline", points=drawn, stroke=colour, data_name=name))
        if len(points) < 30:
            parts += [tag("circle", cx=_px(across), cy=_px(down), r=2, fill=colour) for across, down in points]
    cursor = tag("line", y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor", visibility="hidden")
    frame = {"data_left": LEFT, "data_right": WIDTH - RIGHT, "data_top": TOP, "data_bottom": HEIGHT - BOTTOM}
    ends = {"data_x0": x0, "data_x1": x1, "data_y0": y0, "data_y1": y1, "data_log": log}
    return tag(
        "svg",
        *parts,
        cursor,
        view_box=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        class_="chart",
        **frame,
        **ends,
    )


def legend(names: Sequence[str]) -> Markup:
    """Names with their curves' colors, each with a place for its value under the pointer."""
    keys = []
    for i, name in enumerate(names):
        dot = tag("circle", cx=4, cy=4, r=4, fill=COLOURS[i % len(COLOURS)])
        shape = tag("svg", dot, view_box="0 0 8 8", class_="dot", aria_hidden="true")
        keys.append(tag("span", shape, name, " ", tag("output"), data_name=name))
    return tag("p", *keys, class_="legend")


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two others, about so many."""
    step = (high - low) / about
    power = 10.0 ** math.floor(math.log10(step))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / step)))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between 10**low and 10**high, and some numbers between them where they are few."""
    first, last = max(-300, math.floor(low)), min(300, math.ceil(high))
    every = max(1, round((last - first) / 5))
    factors = (1,) if last - first > 2 else (1, 2, 5)
    found = [m * 10.0**power for power in range(first, last, every) for m in factors]
    return [value for value in found if low <= math.log10(value) <= high]


def _span(low: float, high: float, pad: float) -> tuple[float, float]:
    """A range with some room, and never empty."""
    room = (high - low) * pad
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 0.5
    return low - room, high + room


def number(value: float) -> str:
    """A number in few characters: 0.25, 12k, 1.5M, 2e-5."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= abs(value) < 1e12:
            return f"{value / (1e3 if suffix == 'k' else limit):.4g}{suffix}"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"


def _px(value: float) -> str:
    return f"{value:.1f}"
