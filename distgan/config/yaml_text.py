"""YAML as it was typed: every scalar as text, within bounds, with errors that do not show its content.

A config may name any file as its `base:`, so that a message which showed its content would show any file.
"""

import functools
import re
from pathlib import Path
from typing import Any

import yaml

from distgan.config.choices import own_schemas
from distgan.config.fields import leaves
from distgan.config.schema import Config
from distgan.errors import ConfigError, DataError
from distgan.storage import untrusted

MAX_BYTES = 2**20  # of a file
MAX_DIGITS, MAX_TEXT = 200, 10_000  # of a number, and characters of a text
_NUMBER = re.compile(r"[-+]?\d[\da-fA-FxXob_:.]*")
_NAMED = re.compile(r"(duplicate key|alias) .*", re.DOTALL)
# The parser that OmegaConf prefers, too: libyaml, which allows `?` in a list
_TEXTS = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
# What YAML's own constructors raise next to YAMLError, for `!!int abc` and 2001-99-99
BAD_VALUES = (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError)


def read(file: Path, *, follow_links: bool = True) -> str:
    """Return the text of a config. Raises FileNotFoundError, or ConfigError for what is none."""
    try:
        return untrusted.read(file, MAX_BYTES, follow_links=follow_links).decode("utf-8-sig")
    except DataError as error:
        raise ConfigError(str(error)) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not text, so not a config: name a YAML file or a run folder") from None


def texts(text: str) -> object:
    """Return a document with each scalar as it is written. Raises YAMLError, or ValueError for a number of no use."""
    document = yaml.load(text, Loader=_TEXTS)
    _require_short(document, set())
    return document


def problem(error: Exception) -> str:
    """Return what is wrong and where, but not its content."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        return _NAMED.sub(r"\1", what)[:200] + where
    if isinstance(error, BAD_VALUES):
        return "a number, date, tagged value or text is not what it should be, or far too long; a text needs quotes"
    return " ".join(str(error).split())[:200]


def _require_short(value: object, seen: set[int]) -> None:
    """Refuse numbers and texts that take long; each part is looked at once, however often it is named."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ValueError("a text of too many characters")
        if len(value) > MAX_DIGITS and _NUMBER.fullmatch(value):
            raise ValueError("a number of too many digits")
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for part in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _require_short(part, seen)


@functools.cache
def text_settings(kind: object) -> frozenset[str]:
    """Return the settings that are texts, or with `list[str]` lists of them."""
    known = [*leaves(Config)]
    for group, _, schema in own_schemas():
        known += leaves(schema, f"{group}.")
    return frozenset(name for name, field in known if field.type in (kind, getattr(kind, "__name__", ""), str(kind)))


def as_typed(values: dict, texts: Any, prefix: str = "") -> dict:
    """Return values as YAML reads them, but a setting that is a text as it was typed: `no` is no False, and `007` no 7.

    Args:
        texts: The same document, with each scalar as it is written.
    """
    result = dict(values)
    for name, value in values.items():
        text = texts.get(str(name)) if isinstance(texts, dict) else None
        if text is None:
            continue  # from a merge key, or of another spelling
        if isinstance(value, dict):
            result[name] = as_typed(value, text, f"{prefix}{name}.")
        elif isinstance(text, str) and not isinstance(value, str) and f"{prefix}{name}" in text_settings(str):
            result[name] = text
        elif f"{prefix}{name}" in text_settings(list[str]) and value is not None:
            ends = zip(value, text) if isinstance(value, list) else [(value, text)]
            result[name] = [typed if isinstance(typed, str) and not isinstance(x, str) else x for x, typed in ends]
    return result


class EscapedDumper(yaml.SafeDumper):
    """Writes texts in quotes, with escapes for all but ASCII."""


EscapedDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)
