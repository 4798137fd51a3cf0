"""Explain the settings: `distgan config --help-keys`, docs/config.md, and how two configs differ."""

from collections.abc import Iterator
from dataclasses import Field, dataclass
from typing import Any, Literal, get_args, get_origin

from distgan.config.choices import CHOOSERS, names, own_schemas
from distgan.config.fields import default_of, leaves
from distgan.config.records import changes
from distgan.config.renamed import new_name
from distgan.config.schema import Config
from distgan.errors import ConfigError
from distgan.storage.formatting import table

TYPES: dict[object, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    dict: "settings",
    list[str]: "texts",
    list[dict]: "list of settings",
    list[Any]: "list",
    list[int]: "integers",
    list[float]: "numbers",
    tuple[float, float]: "two numbers",
}
COMMAND = "distgan config --help-keys --markdown"


@dataclass(frozen=True)
class Row:
    """One setting. `of`: what chooses the part that has it, as "model.family=dcgan"; `free`: a resume may change it."""

    key: str
    type: str
    default: str
    unit: str
    about: str
    of: str
    free: bool

    @property
    def group(self) -> str:
        return self.of or self.key.split(".")[0]


def rows() -> Iterator[Row]:
    """Yield every setting there is, in the schema's order; those that parts have of their own last, part by part."""
    for name, field in leaves(Config):
        yield _row(name, field, "")
    for group, part, schema in own_schemas():
        for name, field in leaves(schema, f"{group}."):
            yield _row(name, field, f"{CHOOSERS[group]}={part}")


def _row(name: str, field: Field, of: str) -> Row:
    about = field.metadata
    choices = tuple(names(about["choices"])) if about["choices"] else ()
    if about["unit"].endswith("schedule"):
        kind = "schedule"
    elif about["unit"] == "size":
        kind = "size"
    elif get_origin(field.type) is Literal:
        kind, choices = "choice", get_args(field.type)
    elif choices and field.type is str:
        kind = "choice"
    else:
        kind = TYPES[field.type]
    value = default_of(field)
    text = about["help"] + (f" ({', '.join(choice or 'empty' for choice in choices)})" if choices else "")
    unit = about["unit"].removesuffix("schedule").strip().replace("size", "pixels")
    return Row(name, kind, _default(value, about["unit"]), unit, text, of, about["free"])


def _default(value: object, unit: str) -> str:
    """Return a default as it would be written in a config: 20k, [0.0, 0.99]; nothing for what is empty."""
    if isinstance(value, bool):
        return str(value).lower()
    if unit.endswith("schedule") and isinstance(value, list):
        value, unit = value[0] if value else "", unit.removesuffix("schedule").strip()
    if unit == "images" and isinstance(value, (int, float)):
        for suffix, scale in (("M", 10**6), ("k", 10**3)):
            if value and value % scale == 0:
                return f"{value // scale:g}{suffix}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]" if value else ""
    return "" if value == {} else str(value)


def help_keys(wanted: str = "") -> list[str]:
    """Return a table of the settings that begin with `wanted`, or else have it in their name.

    Raises ConfigError where there is none.
    """
    if line := new_name(wanted):
        raise ConfigError(line)
    known = list(rows())
    found = [row for row in known if row.key.startswith(wanted)] or [row for row in known if wanted in row.key]
    if not found:
        groups = dict.fromkeys(row.key.split(".")[0] for row in known)
        raise ConfigError(f"no settings start with {wanted!r}; groups are {', '.join(groups)}")
    cells = [
        (row.key, row.type, row.default, row.unit, f"{row.of.partition('=')[2]}: {row.about}" if row.of else row.about)
        for row in found
    ]
    return table(cells)


def markdown() -> list[str]:
    """Return all settings as docs/config.md has them."""
    lines = [
        "# Every setting",
        "",
        f"Made by `{COMMAND} > docs/config.md`; do not edit it by hand.",
        "",
        "A setting goes into a YAML file by group (`train: {batch: 64}`) or behind the command (`train.batch=64`).",
        "Numbers of images may be written `25000`, `25k` or `1.5M`. A schedule is a number, or `[first, last]`:",
        "it then goes from the first to the last over `train.schedule_images` images. A setting with a * may change",
        "when a run is resumed.",
    ]
    group = ""
    for row in rows():
        if row.group != group:
            group = row.group
            lines += ["", f"## `{group}`", "", "| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
        default = f"`{row.default}`" if row.default else ""
        about = row.about.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{row.key}`{' *' * row.free} | {row.type} | {default} | {row.unit} | {about} |")
    return lines


def diff(first: Config, second: Config) -> list[str]:
    """Return settings that differ: first those that change the training, then those that a resumed run may change."""
    free, others = changes(first, second)
    parts = []
    for title, found in (("change the training:", others), ("may change when a run is resumed:", free)):
        if found:
            cells = [(f"  {name}", _shown(old), "->", _shown(new)) for name, (old, new) in sorted(found.items())]
            parts += [title, *table(cells)]
    return parts or ["no difference"]


def _shown(value: object) -> str:
    return "(none)" if value is None else repr(value) if isinstance(value, str) else str(value)
