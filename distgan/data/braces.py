"""Brace expressions, as shells have them: `{000..099}`, `{a,b}`, `{0..9..3}`, nested; nothing else is filled in."""

import re
from itertools import product
from math import prod

MOST, MOST_BYTES, DEEPEST = 1_000_000, 2**28, 20  # names, and characters of all of them; braces inside braces
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?|([A-Za-z])\.\.([A-Za-z])")


def expand(text: str) -> list[str]:
    """Return all names that an expression means. Raises ValueError: a brace is left open, or they are too many."""
    return _expanded(text, 0)


def _expanded(text: str, depth: int) -> list[str]:
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} braces inside one another")
    pieces: list[list[str]] = []
    at = 0
    while (start := text.find("{", at)) >= 0:
        commas, end = _group(text, start)
        inside = [text[a + 1 : b] for a, b in zip([start, *commas], [*commas, end])]
        pieces += [[text[at:start]], _options(inside, depth)]
        at = end + 1
    if "}" in text[at:]:
        raise ValueError("unbalanced braces")
    pieces.append([text[at:]])
    _require_few(prod(map(len, pieces)), max(sum(max(map(len, piece)) for piece in pieces), 1))
    return ["".join(parts) for parts in product(*pieces)]


def _group(text: str, start: int) -> tuple[list[int], int]:
    """Return where the commas of the group that begins at `start` are, and where it ends."""
    commas: list[int] = []
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return commas, at
        if text[at] == "," and depth == 1:
            commas.append(at)
    raise ValueError("unbalanced braces")


def _options(inside: list[str], depth: int) -> list[str]:
    if len(inside) > 1:
        names: list[str] = []
        for option in inside:
            names += _expanded(option, depth + 1)
            _require_few(len(names), 1)
        return names
    span = _RANGE.fullmatch(inside[0])
    if span is None:
        return [f"{{{option}}}" for option in _expanded(inside[0], depth + 1)]
    first, last, step, letter, last_letter = span.groups()
    if letter:
        low, high, by = ord(letter), ord(last_letter), 1
    else:
        low, high, by = int(first), int(last), abs(int(step or 1)) or 1
    numbers = range(low, high + 1, by) if low <= high else range(low, high - 1, -by)
    _require_few(len(numbers), 20)
    if letter:
        return [chr(number) for number in numbers]
    padded = any(end.lstrip("-").startswith("0") and len(end.lstrip("-")) > 1 for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}d}" for number in numbers]


def _require_few(num: int, length: int) -> None:
    if num > MOST or num * length > MOST_BYTES:
        raise ValueError(f"more than {MOST:,} names, or than {MOST_BYTES:,} characters of them")
