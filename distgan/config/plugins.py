"""Plugins: Python files or modules that add parts of their own to the dictionaries that the program itself uses.

A plugin runs because a config that the user starts names it, or because `--plugin` does; never because a run folder, a
checkpoint or an export does, which only record its name and sha256.
"""

import hashlib
import importlib
import importlib.util
import os
import re
import shlex
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from distgan.config import choices, yaml_text
from distgan.errors import ConfigError, DataError
from distgan.metrics.names import EVAL_METRICS, VALUES
from distgan.storage.home import user_path
from distgan.storage.untrusted import MAX_SOURCE_BYTES, read

GROUP = "distgan.plugins"  # of entry points, by which an installed package names its plugins

# Kind of part -> module and name of its dictionary. By name, since most import torch, and stand above this module; they
# are imported when there is a plugin, before it runs.
PARTS: dict[str, tuple[str, str]] = {
    "loss": ("distgan.losses.adversarial", "LOSSES"),
    "family": ("distgan.models", "MODELS"),
    "family's settings": ("distgan.config.model_schema", "FAMILIES"),
    "optimizer": ("distgan.training.optimizers", "OPTIMIZERS"),
    "schedule": ("distgan.training.schedulers", "SCHEDULES"),
    "augmentation": ("distgan.transforms.augment", "AUGMENTATIONS"),
    "host transform": ("distgan.data.host_transforms", "TRANSFORMS"),
    "degradation": ("distgan.transforms.degrade", "KINDS"),
    "degradation's strength": ("distgan.transforms.degrade_spec", "KINDS"),
    "metric": ("distgan.metrics.registry", "METRICS"),
    "extractor": ("distgan.metrics.extractors", "EXTRACTORS"),
    "alert rule": ("distgan.tracking.alerts", "ALERT_RULES"),
    "tracker": ("distgan.tracking.trackers", "TRACKERS"),
}
PAIRS = (("family", "family's settings"), ("degradation", "degradation's strength"))  # a part needs both
NAMED = {  # kind of part -> where the config has its names
    "loss": choices.LOSSES,
    "optimizer": choices.OPTIMIZERS,
    "schedule": choices.SCHEDULES,
    "augmentation": choices.AUGMENTATIONS,
    "extractor": choices.EXTRACTORS,
    "tracker": choices.TRACKERS,
}


@dataclass(frozen=True)
class Plugin:
    """A plugin that was loaded.

    Attributes:
        name: Its file's name, or its module's: what records say of it.
        where: Its file's path, or its module's name: what a config says.
        sha256: Of its source.
        files: Its source: name and content of each file.
        adds: The parts that it adds, as (kind, name).
    """

    name: str
    where: str
    sha256: str
    files: tuple[tuple[str, bytes], ...]
    adds: tuple[tuple[str, str], ...]


_loaded: dict[str, Plugin] = {}  # by `where`; a process cannot load one twice, since its parts are there


def load_plugins(names: Iterable[tuple[str, Path | None]]) -> list[str]:
    """Load plugins that were not loaded yet; returns the `where` of each, in their order.

    Args:
        names: What the user wrote, and the folder that a relative path is in; None for the current one.

    Raises:
        ConfigError: One is missing, fails, or takes a name that there is.
    """
    return list(dict.fromkeys(_load(name, folder).where for name, folder in names))


def load_named(
    layers: Sequence[tuple[str, dict]], own: Sequence[tuple[str, dict]], more: Sequence[str], saved: Path | None
) -> list[str]:
    """Load the plugins of all layers, and return what `config.plugins` says of them.

    Args:
        saved: The config that a run wrote, if that is one of the layers: what it names must be named once more.

    Raises:
        ConfigError: One is not as it should be, or a run's own is not named by who starts the command.
    """
    named: list[tuple[str, Path | None]] = []
    for layer, values in layers:
        folder = Path(layer).parent if Path(layer).is_file() else None  # a path in a file is from that file
        if layer != str(saved):
            named += [(name, folder) for name in named_by(layer, values)]
    named += [(name, None) for layer, values in own for name in named_by(layer, values)]
    named += [(name, None) for name in more]
    if saved is not None:
        given = {os.path.basename(name) for name, _ in named}
        recorded = [os.path.basename(name) for name in named_by(str(saved), dict(layers)[str(saved)])]
        if missing := [name for name in recorded if name not in given]:
            raise ConfigError(f"{saved}: it was trained with a plugin, {how_to_load(missing, saved.parent)}")
    return load_plugins(named) if named else []


def named_by(layer: str, values: Mapping[str, object]) -> list[str]:
    """Return the plugins that a layer names."""
    found = values.get("plugins", [])
    found = [found] if isinstance(found, str) else found or []
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ConfigError(f"{layer}: plugins: a list of Python files, or of names of modules, such as [my_parts.py]")
    return found


def loaded(where: Sequence[str]) -> list[Plugin]:
    """Return the plugins of a config, by what its `plugins` says."""
    return [_loaded[one] for one in where if one in _loaded]


def digests(where: Sequence[str]) -> dict[str, str]:
    """Return the sha256 of the plugins of a config by their names."""
    return {plugin.name: plugin.sha256 for plugin in loaded(where)}


def record(where: Sequence[str]) -> tuple[dict[str, object], list[tuple[str, bytes]]]:
    """Return what a run folder keeps of the plugins of a config: what they are, with the direction of their metrics for
    who reads the run without them; and their files."""
    found = loaded(where)
    halves = [other for _, other in PAIRS]
    about = {
        plugin.name: {
            "sha256": plugin.sha256,
            "adds": [f"{kind} {name}" for kind, name in plugin.adds if kind not in halves],
        }
        for plugin in found
    }
    metrics = [name for plugin in found for kind, name in plugin.adds if kind == "metric"]
    better = {value: VALUES[value] for name in metrics for value in _dictionary("metric")[name].names}
    return {"plugins": about, "directions": better}, [file for plugin in found for file in plugin.files]


def others(before: dict[str, str]) -> list[str]:
    """Return which of the plugins that trained a run, by name and sha256, are loaded here in another form."""
    now = {plugin.name: plugin.sha256 for plugin in _loaded.values() if plugin.name in before}
    return differences({name: before[name] for name in now}, now)


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return how the plugins that trained a run, by name and sha256, differ from those that are loaded now."""
    lines = [f"the plugin {name} was not loaded" for name in before if name not in now]
    lines += [f"the plugin {name} is new" for name in now if name not in before]
    return lines + [
        f"the plugin {name} is another one: sha256 {before[name][:12]} before, {now[name][:12]} now"
        for name in before
        if name in now and before[name] != now[name]
    ]


def how_to_load(names: Iterable[str], folder: Path | None) -> str:
    """Return how plugins that a run names are loaded, as the end of "a plugin, whose code ..."; "" where it names none.

    Args:
        folder: The run folder, which keeps copies of them; None: there is none.
    """
    words = []
    for name in names:
        is_file = name.endswith(".py") and os.path.basename(name) == name
        copy = folder / "plugins" / name if folder and is_file else None
        # A checkpoint may hold any name, and people paste what a message says.
        words.append(f"--plugin {shlex.quote(str(copy if copy is not None and copy.exists() else name))}")
    if not words:
        return ""
    return f"whose code runs only if you name it: add {' '.join(words)}"


def _load(name: str, folder: Path | None) -> Plugin:
    is_file = name.endswith(".py") or os.sep in name
    path = user_path(name) if is_file else None
    if path is not None:
        path = Path(os.path.abspath(path if path.is_absolute() or folder is None else folder / path))
    where = str(path) if path is not None else _module_name(name)
    if where in _loaded:
        return _loaded[where]
    before = {kind: dict(_dictionary(kind)) for kind in PARTS}
    try:
        if path is not None:
            files = [(path.name, _read(path))]
            digest = _digest(files)
            _run_file(path, files[0][1], digest)
        else:
            module = importlib.import_module(where)
            files = _sources(module)
            digest = module.__dict__["__sha256__"] = _digest(files)
        adds = _added(before)
        if not adds:
            raise ConfigError(
                "it adds nothing to any dictionary of parts; a module that the program imported before is too late"
            )
    except ConfigError as error:
        _restore(before)
        raise ConfigError(f"plugins: {name}: {error}") from None
    except (Exception, SystemExit) as error:
        _restore(before)
        raise ConfigError(f"plugins: {name}: {_cause(error, where)}") from error
    _register(adds)
    twin = next((one for one in _loaded.values() if one.name == (path.name if path else where)), None)
    if twin is not None:
        _restore(before)
        raise ConfigError(f"plugins: {name}: {twin.where} has that name too, and records would mix them: rename one")
    plugin = Plugin(path.name if path else where, where, digest, tuple(files), tuple(adds))
    _loaded[where] = plugin
    return plugin


def _module_name(name: str) -> str:
    """Return the module that a name means: that of an entry point of an installed package, or itself."""
    found = [one for one in metadata.entry_points(group=GROUP) if one.name == name]
    return found[0].value.partition(":")[0] if found else name


def _read(path: Path) -> bytes:
    try:
        return read(path, MAX_SOURCE_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: name a Python file, or a module") from None
    except DataError as error:
        raise ConfigError(f"{error}: name a Python file, or a module") from None


def _run_file(path: Path, source: bytes, digest: str) -> None:
    """Run the very bytes that were hashed, as a module that dataclasses and tracebacks can find."""
    name = f"distgan_plugin_{path.stem}_{digest[:12]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__.update(__file__=str(path), __sha256__=digest)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


def _sources(module: types.ModuleType) -> list[tuple[str, bytes]]:
    """Return the files of a module; of a package, all of its Python files."""
    file = Path(str(module.__file__))
    if not module.__file__ or file.suffix != ".py":
        raise ConfigError("it has no Python file to record: name a .py file, or a module that is one")
    if not hasattr(module, "__path__"):
        return [(file.name, _read(file))]
    paths = sorted(file.parent.rglob("*.py"))
    return [(str(path.relative_to(file.parent.parent)), _read(path)) for path in paths]


def _digest(files: Sequence[tuple[str, bytes]]) -> str:
    """Return the sha256 of a file; of several, that of their names and contents."""
    if len(files) == 1:
        return hashlib.sha256(files[0][1]).hexdigest()
    parts = [name.encode() + b"\0" + hashlib.sha256(content).digest() for name, content in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _dictionary(kind: str) -> dict[str, Any]:
    module, name = PARTS[kind]
    found: dict[str, Any] = getattr(importlib.import_module(module), name)
    return found


def _added(before: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the parts that were added. Raises ConfigError where others are gone or replaced, or one is half there."""
    added: list[tuple[str, str]] = []
    for kind, known in before.items():
        now = _dictionary(kind)
        if changed := [name for name in known if now.get(name) is not known[name]]:
            raise ConfigError(f"{changed[0]!r} is the name of a built-in {kind}: give yours another one")
        new = [name for name in now if name not in known]
        if bad := [
            name for name in new if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,60}", name, re.ASCII)
        ]:
            raise ConfigError(
                f"a name for the kind of part {kind!r} is {bad[0]!r}: letters, digits, - and _ are allowed"
            )
        added += [(kind, name) for name in new]
    values = [value for metric in _dictionary("metric").values() for value in metric.names]
    if twice := [value for value in values if values.count(value) > 1]:
        raise ConfigError(f"two metrics call a value {twice[0]!r}: give yours another name")
    for kind, other in PAIRS:
        sides = [{name for one, name in added if one == of} for of in (kind, other)]
        if lone := sorted(sides[0] ^ sides[1]):
            has, lacks = (kind, other) if lone[0] in sides[0] else (other, kind)
            module, name = PARTS[lacks]
            raise ConfigError(f"it adds the {has} {lone[0]!r}, but nothing of that name to {name} of {module}")
    return added


def _register(added: Iterable[tuple[str, str]]) -> None:
    """Make new parts known to the config: their names, own settings, and what is better."""
    for kind, name in added:
        part = _dictionary(kind)[name]
        if kind in NAMED:
            NAMED[kind][name] = getattr(part, "options", None)
        if kind == "metric":
            EVAL_METRICS[name] = part.direction
            for value in part.names:
                VALUES[value] = part.direction
    yaml_text.text_settings.cache_clear()


def _restore(before: dict[str, dict[str, Any]]) -> None:
    """Undo what a plugin did to the dictionaries."""
    for kind, known in before.items():
        now = _dictionary(kind)
        gone = now.keys() - known.keys()
        now.clear()
        now.update(known)
        for name in gone:
            NAMED.get(kind, {}).pop(name, None)
            if kind == "metric":
                EVAL_METRICS.pop(name, None)


def _cause(error: BaseException, where: str) -> str:
    """Return what a plugin raised, and in which of its lines."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name == where or where.startswith(f"{error.name}."):
            return "there is no such module: name a .py file, or install it, or set PYTHONPATH"
        return f"it needs the package {error.name!r}, which is not installed"
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == where else line
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno or 0
    at = f"line {line}: " if line else ""
    return f"{at}{type(error).__name__}: {' '.join(str(error).split())[:300]}"
