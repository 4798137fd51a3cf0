"""Numbers, sizes, alternatives, errors and tables as readable text."""

import math
from collections.abc import Sequence


def short_number(value: float) -> str:
    """Return a number in few characters: 0.25, 12k, 1.5M, 2e-5."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= abs(value) < 1e12:
            return f"{value / (1e3 if suffix == 'k' else limit):.4g}{suffix}"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"


def whole_number(value: float) -> str:
    """Return a number with all its digits, up to 15: what is copied into a setting or a formula."""
    return f"{value:.15g}"


def rounded_by_distance(low: float, high: float) -> tuple[float, float]:
    """Round two numbers to six digits of their distance: their own size, such as 1e6 of 1013250, has no part in it."""
    if not 0 < high - low < math.inf:
        return low, high
    digits = 5 - math.floor(math.log10(high - low))
    return round(low, digits), round(high, digits)


def interval(low: float, high: float, between: str = " to ") -> str:
    """Return two numbers as text, with the digits by which they differ: "1013249 to 1013251"."""
    return between.join(whole_number(value) for value in rounded_by_distance(low, high))


def size(num_bytes: float) -> str:
    """Return a size on disk: 3.1 MB, 1.5 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def one_line(error: Exception) -> str:
    """Return an error's class and message in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def one_of(values: Sequence[object]) -> str:
    """Return alternatives as words: 1, 2 or 4."""
    text = [str(value) for value in values]
    return ", ".join(text[:-1]) + " or " + text[-1] if len(text) > 1 else text[0]


def table(rows: Sequence[Sequence[str]], align: str = "") -> list[str]:
    """Return lines in which the cells of each column are aligned.

    Args:
        align: "<" or ">" for each column; those beyond it are "<".
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    sides = align.ljust(len(widths), "<")
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths)).rstrip() for row in rows
    ]
