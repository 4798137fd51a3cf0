"""Configs as records keep them: plain values, without secrets, and how two of them differ."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from distgan.config.fields import leaves
from distgan.config.schema import Config
from distgan.storage.urls import public, public_text


def changes(old: Config, new: Config) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Return settings that differ, as key -> (old, new): those a resumed run may change freely, and the others."""
    free = {name for name, f in leaves(Config) if f.metadata.get("free")}
    before, after = dict(leaves(old)), dict(leaves(new))
    differ = {k: (before.get(k), after.get(k)) for k in before | after if before.get(k) != after.get(k)}
    return {k: v for k, v in differ.items() if k in free}, {k: v for k, v in differ.items() if k not in free}


def to_dict(config: Config) -> dict:
    """Return plain nested values, as they come back from JSON: lists, no tuples."""
    return json.loads(json.dumps(asdict(config)))


def for_records(config: Config) -> Config:
    """Return a config as a run's records keep it: without secrets, and without the permission to continue with other
    settings or data, which is given for one start."""
    cleaned = without_secrets(config)
    return replace(cleaned, run=replace(cleaned.run, allow_config_change=False, allow_data_change=False))


def without_secrets(config: Config) -> Config:
    """Return a config without secrets: addresses without user, password and query; no command, no right to run one."""
    result = config
    for section in fields(config):
        values = getattr(config, section.name)
        shown = _public_prose if section.name == "wandb" else public
        result = replace(result, **{section.name: _map_texts(values, shown)})
    return replace(result, data=replace(result.data, allow_pipe=False))


def _public_prose(text: str) -> str:
    """Return words such as wandb.notes, which continue after an address, without its secrets."""
    return public(text) if "pipe:" in text else public_text(text)


def _map_texts(value: Any, shown: Callable[[str], str]) -> Any:
    """Return a setting's value with its texts as `shown` gives them."""
    if isinstance(value, str):
        return shown(value) if "://" in value or "pipe:" in value else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map_texts(getattr(value, f.name), shown) for f in fields(value)})
    if isinstance(value, dict):
        return {name: _map_texts(inner, shown) for name, inner in value.items()}
    return [_map_texts(inner, shown) for inner in value] if isinstance(value, list) else value


def flat(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield leaves by dotted key; lists and empty mappings are leaves."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
