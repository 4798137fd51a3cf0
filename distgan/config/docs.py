"""Explain the settings: `distgan config --help-keys`, docs/config.md, and how two configs differ."""

from collections.abc import Iterator
from dataclasses import Field, dataclass
from typing import Literal, get_args, get_origin

from distgan.config.fields import default_of, leaves
from distgan.config.model_schema import FAMILIES
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
    list[int]: "integers",
    list[float]: "numbers",
    tuple[float, float]: "two numbers",
}
COMMAND = "distgan config --help-keys --markdown"


@dataclass(frozen=True)
class Row:
    """One setting. `family` is that of a network's own settings, else ""; `free`: a resumed run may change it."""

    key: str
    type: str
    default: str
    unit: str
    about: str
    family: str
    free: bool

    @property
    def group(self) -> str:
        return f"model.family={self.family}" if self.family else self.key.split(".")[0]


def rows() -> Iterator[Row]:
    """Yield every setting there is, in the schema's order; those of the networks last, family by family."""
    for name, field in leaves(Config):
        yield _row(name, field, "")
    for family, schemas in FAMILIES.items():
        for net, schema in zip("GD", schemas):
            for name, field in leaves(schema, f"model.{net}."):
                yield _row(name, field, family)


def _row(name: str, field: Field, family: str) -> Row:
    about, choices = field.metadata, ()
    if about["unit"].endswith("schedule"):
        kind = "schedule"
    elif about["unit"] == "size":
        kind = "size"
    elif get_origin(field.type) is Literal:
        kind, choices = "choice", get_args(field.type)
    else:
        kind = TYPES[field.type]
    value = default_of(field)
    text = about["help"] + (f" ({', '.join(choice or 'empty' for choice in choices)})" if choices else "")
    unit = about["unit"].removesuffix("schedule").strip().replace("size", "pixels")
    return Row(name, kind, _default(value, about["unit"]), unit, text, family, about["free"])


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
        (row.key, row.type, row.default, row.unit, f"{row.family}: {row.about}" if row.family else row.about)
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
