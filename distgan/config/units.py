"""Spellings of a value that a setting's unit allows: 25k images, a number for a schedule."""

from dataclasses import Field
from typing import Any, Literal, get_args, get_origin

from distgan.config.fields import default_of


def convert(value: object, field: Field | None) -> object:
    """Return a value as the schema has it. Raises ValueError for one that is not of the setting's unit."""
    if field is None:
        return value
    if field.type in (list[str], list[Any]) and isinstance(value, str):
        return [value]
    if value == "auto" and field.name == "range":
        return []  # the levels of the type, or what the data set's card says
    if isinstance(value, str) and "${" in value:  # an interpolation: OmegaConf checks what it gives
        return value
    if value is False and get_origin(field.type) is Literal and "off" in get_args(field.type):
        return "off"  # which YAML reads as false
    unit = field.metadata["unit"]
    if unit == "size":
        return _size(value)
    if unit == "images":
        return _images(value)
    if unit.endswith("schedule"):
        ends: list[Any] = value if isinstance(value, list) else [value]
        if unit == "images schedule":
            ends = [_images(end) for end in ends]
        if ends == default_of(field):
            return ends
        if not 1 <= len(ends) <= 2 or not all(isinstance(end, (int, float)) for end in ends):
            raise ValueError(f"{value!r} is neither a number nor [first, last]")
        return [float(end) for end in ends]
    return value


def _images(value: object) -> int:
    """Return a number of images, written 25000, 2.5e4, 25k or 1.5M."""
    number: Any = value
    if isinstance(value, str):
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(value[-1:], 1)
        try:
            number = float(value.rstrip("kMG") if scale > 1 else value) * scale
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number % 1 != 0:
        raise ValueError(f"{value!r} is not a number of images: write 25000, 25k or 1.5M")
    return round(number)


def _size(value: object) -> int | list[int]:
    """Return a side in pixels, or [height, width] where they differ."""
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    numbers = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    if len(numbers) < 2:
        raise ValueError(f"{value!r} is no size: write a side in pixels, 64, or [height, width], [48,64]")
    return numbers[0] if numbers[0] == numbers[1] else numbers
