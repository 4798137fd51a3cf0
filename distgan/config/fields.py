"""A setting as a field of a dataclass: its help, unit and bounds."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any


def key(
    default: object,
    help: str,
    *,
    unit: str = "",
    free: bool = False,
    personal: bool = False,
    low: float | None = None,
    high: float | None = None,
    choices: str = "",
) -> Any:
    """Return a setting: a dataclass field with its default, help, unit and bounds.

    Args:
        unit: "images" takes 200k and 25M too; "schedule" takes a number, or [first, last] over train.schedule_images;
            "images schedule" is both; "size" takes a side, or [height, width].
        free: Whether a resumed run may change it without asking.
        personal: Whether it gives rights that only who starts a command has: no file may set it, not a checkpoint's.
        low, high: Bounds, both allowed.
        choices: Which parts it names, see `choices.names`.
    """
    about = {"help": help, "unit": unit, "free": free, "personal": personal, "low": low, "high": high}
    about["choices"] = choices
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


def leaves(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all settings of a config by their dotted keys; of a schema's class, the fields instead of the values."""
    for f in fields(schema):
        name = prefix + f.name
        default = f.default_factory if f.default is MISSING else None
        if isinstance(schema, type):
            inner = default if is_dataclass(default) else None
            yield from leaves(inner, name + ".") if inner else [(name, f)]
        else:
            value = getattr(schema, f.name)
            if is_dataclass(value):
                yield from leaves(value, name + ".")
            elif isinstance(value, dict):
                yield from ((f"{name}.{inner}", x) for inner, x in value.items())
            else:
                yield name, value


def default_of(setting: Field) -> Any:
    """Return the default of a setting."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()
