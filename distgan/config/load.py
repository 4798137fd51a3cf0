"""YAML files and `key=value` -> Config. The only door to OmegaConf.

Layers are merged in this order, each over the last: the schema's defaults, the files of the `base:` chain, the file
itself, the overrides. Every setting is merged by itself: all mistakes are reported at once, each with its place.
"""

import copy
import difflib
import functools
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distgan.config import yaml_text
from distgan.config.fields import default_of, leaves
from distgan.config.model_schema import FAMILIES, net_settings
from distgan.config.permissions import PERSONAL, how_to_grant, is_granted_by_environment, read_environment
from distgan.config.records import flat
from distgan.config.renamed import earlier_version, new_name
from distgan.config.schema import Config
from distgan.config.suggestions import other_places
from distgan.config.units import convert
from distgan.config.validate import config_errors, eval_errors, out_of_bounds
from distgan.config.yaml_text import EscapedDumper, as_typed, text_settings
from distgan.errors import ConfigError, DataError
from distgan.storage.home import user_path
from distgan.storage.urls import public, public_text

MAX_TOLD = 50  # mistakes, one a line
MAX_PATH = 1000  # characters
MAX_FILES = 100  # that a config is made of, by `base:`
OTHER_SPELLINGS = {"init.from": "init.source"}  # `from` is no name of a field in Python
_KEY = re.compile(r"[\w.<-]{0,100}")


def load(path: str, overrides: Sequence[str] = (), *, is_saved: bool = False) -> Config:
    """Return the config of a YAML file (or of a run folder) with overrides applied.

    Args:
        is_saved: Whether the file is one that a run wrote, as that of a run folder is.

    Raises:
        ConfigError: with every mistake of every layer, one line each.
    """
    file = user_path(path)
    folder = file if file.is_dir() else None
    if folder:
        file = folder / "config.yaml"
        if not file.exists():
            raise ConfigError(f"{path} is a folder without config.yaml: neither a config nor a run")
    is_saved = is_saved or bool(folder)
    here = [("run folder", {"run": {"dir": str(folder)}})] if folder else []  # it may have been moved or copied
    try:
        layers = [*_files(file, (), [], is_saved), *here]
        own = list(_override_layers(overrides))
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply") from None
    if is_saved or (file.parent / "environment.json").exists():  # of a run
        require_own_names(dict(layers)[str(file)], str(file))
    if is_saved:
        _require_resolved(dict(layers)[str(file)], str(file))
    result = _merged(layers, own, str(file))
    result.run.dir = result.run.dir or f"runs/{file.stem}"
    mistakes = out_of_bounds(result) + config_errors(result)
    if mistakes:
        raise _error(mistakes)
    return result


def load_mapping(values: Mapping[str, object], overrides: Sequence[str] = ()) -> Config:
    """Return the config of a mapping of a program's own, as a YAML file would hold it, with overrides applied.

    Raises:
        ConfigError: with every mistake, one line each. `run.dir` must be given, since there is no file's name for it.
    """
    result = _merged([("the config", dict(values))], list(_override_layers(overrides)), "the config")
    mistakes = [] if result.run.dir else ["run.dir: a config without a file needs it"]
    if mistakes := mistakes + out_of_bounds(result) + config_errors(result):
        raise _error(mistakes)
    return result


def load_to_evaluate(layers: Sequence[tuple[str, dict]], overrides: Sequence[str]) -> Config:
    """Return the config of an evaluation: layers of (name, values), such as a checkpoint's config, with overrides.

    Nothing will be trained, so only what concerns data and evaluations is checked, and only that may be overridden.

    Raises:
        ConfigError: with every mistake, one line each.
    """
    for text in overrides:
        name = text.partition("=")[0]
        if "=" in text and not name.startswith(("eval.", "data.", "run.")):
            raise ConfigError(f"{public(text)}: an evaluation takes overrides of eval.* and data.* only")
    for layer, values in layers:
        require_own_names(values, layer)
        _require_resolved(values, layer)
    result = _merged(layers, list(_override_layers(overrides)), "config")
    if mistakes := out_of_bounds(result) + eval_errors(result.eval):
        raise _error(mistakes)
    return result


def _merged(layers: Sequence[tuple[str, dict]], own: Sequence[tuple[str, dict]], origin: str) -> Config:
    """Return the defaults with layers of values on top, bounds not checked; `own` come from the command line."""
    schema = dict(leaves(Config))
    config = _defaults()
    mistakes: list[str] = []
    given: set[str] = set()
    nets: dict[str, tuple[str, object]] = {}  # the networks' own settings: key -> (layer, value)
    granted = {name: value for _, values in own for name, value in flat(values) if name in PERSONAL}
    for i, (layer, values) in enumerate([*layers, *own]):
        for name, value in flat(values):
            name = OTHER_SPELLINGS.get(name, name)
            if not _KEY.fullmatch(name):  # it may be a line of any file
                mistakes.append(f"{layer}: a key of {len(name):,} characters, which is not the name of a setting")
                continue
            if line := new_name(name, value):
                mistakes.append(f"{layer}: {line}")
                continue
            if name in PERSONAL and i < len(layers):
                if value is not False and not granted.get(name) and not is_granted_by_environment(name):
                    mistakes.append(
                        f"{layer}: {name}={value}: a file cannot set it: {how_to_grant(name)}, or leave it out"
                    )
                continue
            if name == "model.family":  # a layer that chooses another family starts from that family's defaults
                if value not in list(FAMILIES):
                    mistakes.append(
                        f"{layer}: model.family={public(str(value))!r}: choose one of {', '.join(FAMILIES)}"
                    )
                    continue
                nets = {} if value != config.model.family else nets
            if name.startswith(("model.G.", "model.D.")):
                nets[name] = (layer, value)
                continue
            if name in ("model.G", "model.D") and value not in ({}, None):
                mistakes.append(
                    f"{layer}: {name}: is a group of settings, not a value: set one of its keys, such as "
                    f"{name}.{next(leaves(FAMILIES[config.model.family]['GD'.index(name[-1])]))[0]}"
                )
                continue
            given.add(name)
            if mistake := _put(config, name, value, schema):
                if mistake.startswith("Key ") and "Did you mean" not in mistake:
                    mistake += other_places(name, schema, config.model.family)
                mistakes.append(f"{layer}: {name}: {mistake}")

    for name in PERSONAL:
        if name not in granted:
            OmegaConf.update(config, name, is_granted_by_environment(name))
    mistakes += _resolve(config)
    if config.loss.name != default_of(schema["loss.name"]):  # the default penalties are those of the default loss
        for name in {"r1", "r2"} - {name.removeprefix("loss.") for name in given}:
            config.loss[name] = [0.0]
    mistakes += _merge_nets(config, nets)
    if mistakes:
        raise _error(mistakes)
    try:
        result: Config = OmegaConf.to_object(config)  # type: ignore[assignment]  # of a structured config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {error.full_key or ''}: {_first_line(error)}") from None
    return result


@functools.cache
def _schema() -> DictConfig:
    """Return the schema as OmegaConf has it, which takes a while to make."""
    return OmegaConf.structured(Config)


def _defaults() -> DictConfig:
    """Return a config of defaults, for its caller to change."""
    return copy.deepcopy(_schema())


def from_dict(values: dict, where: object = "saved config") -> Config:
    """Return the config that `records.to_dict` gave these values, without rights that only the command line gives.

    Args:
        where: What an error names as the place of the values.

    Raises:
        ConfigError: They are another version's, or none that it gave.
    """
    require_own_names(values, str(where))
    _require_resolved(values, str(where))
    try:
        result: Config = OmegaConf.to_object(OmegaConf.merge(_defaults(), values))  # type: ignore[assignment]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"this config is of another version of distgan: {_first_line(error)}") from None
    for name in PERSONAL:
        section, _, key = name.rpartition(".")
        setattr(getattr(result, section), key, is_granted_by_environment(name))
    if result.model.family not in FAMILIES:
        return result  # of networks that this version cannot build, which is reported where they are built
    try:
        for net in "GD":
            settings = net_settings(result.model.family, net, getattr(result.model, net), f"model.{net}")
            setattr(result.model, net, settings)
    except DataError as error:
        raise ConfigError(f"{where}: {error}") from None
    if mistakes := out_of_bounds(result):
        raise _error(mistakes, f"{where}: ")
    return result


def require_own_names(values: dict, where: str) -> None:
    """Refuse settings that a version with other names saved. Raises ConfigError."""
    if line := earlier_version(flat(values)):
        raise ConfigError(f"{where}: {line}")


def _require_resolved(values: object, origin: str) -> None:
    """Refuse interpolations in what a run wrote, which has none: they could read what is not theirs."""
    if isinstance(values, dict):
        for name, value in values.items():
            _require_resolved(name, origin)
            _require_resolved(value, origin)
    elif isinstance(values, list):
        for value in values:
            _require_resolved(value, origin)
    elif isinstance(values, str) and "${" in values:
        raise ConfigError(f"{origin}: {values!r}: a saved config has no ${{...}} in it: this one was altered")


def to_yaml(config: Config) -> str:
    """Return the whole config as YAML that `load` reads back to an equal one."""
    values = OmegaConf.create(asdict(config))  # of the schema's types already
    text = OmegaConf.to_yaml(values)
    if all(map(str.isprintable, text.split("\n"))):
        return text
    return yaml.dump(OmegaConf.to_container(values), Dumper=EscapedDumper, sort_keys=False)


def _files(file: Path, chain: tuple[Path, ...], read: list[Path], is_saved: bool = False) -> Iterator[tuple[str, dict]]:
    """Yield a file's bases, deepest first, then the file: (name, values). `read` are those that were read so far.

    Args:
        is_saved: Whether a run wrote it: it is a file of the run's folder, and has no bases.
    """
    if file in chain:
        raise ConfigError("base: is circular: " + " -> ".join(map(str, [*chain, file])))
    read.append(file)
    if len(read) > MAX_FILES:
        raise ConfigError(f"{chain[0]}: base: names more than {MAX_FILES} files, one through the other")
    try:
        text = yaml_text.read(file, follow_links=not is_saved)
        texts = yaml_text.texts(text)
        if not isinstance(texts, dict | None):
            raise ConfigError(f"{file}: a config is a mapping of settings, not a {type(texts).__name__}")
        values: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, os.listdir(file.parent) if file.parent.is_dir() else [], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        wanted = f"{chain[-1]}: base {file}" if chain else str(file)
        raise ConfigError(f"{wanted}: no such file{hint}") from None
    except yaml.reader.ReaderError:  # which is what YAML says of bytes such as zero
        raise ConfigError(f"{file}: not text, so not a config: name a YAML file or a run folder") from None
    except (yaml.YAMLError, OmegaConfBaseException, *yaml_text.BAD_VALUES) as error:
        raise ConfigError(f"{file}: not readable as YAML: {yaml_text.problem(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a config is a mapping of settings, not a {type(values).__name__}")
    values = as_typed(values, texts)
    bases = values.pop("base", None) or []
    if bases and is_saved:
        raise ConfigError(f"{file}: base: a saved config stands for itself: this one was altered")
    named = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) and len(base) <= MAX_PATH for base in named):
        raise ConfigError(f"{file}: base: {str(bases)[:200]!r}: name a file, or a list of files")
    for base in named:
        yield from _files(Path(os.path.normpath(file.parent / base)), (*chain, file), read)
    yield str(file), values


def _override_layers(overrides: Sequence[str]) -> Iterator[tuple[str, dict]]:
    for i, text in enumerate(overrides, 1):
        name, equals, typed = text.partition("=")
        name = OTHER_SPELLINGS.get(name, name)
        text = name + equals + typed
        layer = f"override {i} {public(text)[:200]!r}"
        if text.startswith("-") and not equals:
            raise ConfigError(f"{public(text)}: there is no such option")
        if text.startswith("-"):
            raise ConfigError(f"{layer}: write overrides as key=value, without dashes: {text.lstrip('-')}")
        if not equals or not name:
            raise ConfigError(f"{layer}: an override is key=value")
        try:
            if name in text_settings(str) and not typed.lstrip().startswith(tuple("'\"[{")):
                text = f"{name}={json.dumps(typed.strip(), ensure_ascii=False)}"  # all of it, also `: ` and ` #`
            texts = yaml_text.texts(text.partition("=")[2])
            values: Any = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=False)
            for part in reversed(name.split(".")):
                texts = {part: texts}
            yield layer, as_typed(values, texts)
        except (yaml.YAMLError, OmegaConfBaseException, UnicodeError) as error:
            raise ConfigError(f"{layer}: the value is not YAML, quote it: {_first_line(error, text)}") from None
        except yaml_text.BAD_VALUES as error:
            raise ConfigError(f"{layer}: {yaml_text.problem(error)}") from None


def _put(config: DictConfig, name: str, value: object, schema: dict[str, Field]) -> str:
    """Merge a setting into `config`. Returns why it cannot be merged, or ""."""
    group = [known for known in schema if known.startswith(name + ".")]
    try:
        if name not in schema and group:
            if value in ({}, None):  # an empty section
                return ""
            raise ValueError(f"is a group of settings, not a value: set one of its keys, such as {group[0]}")
        if whole := next((known for known in schema if name.startswith(known + ".")), ""):
            raise ValueError(f"{whole} is a setting, not a group of them: set it as a whole")
        OmegaConf.update(config, name, convert(value, schema.get(name)), merge=False)
        return ""
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        if name in schema and value is None:
            return "has no value: give one, or leave the setting out"
        return _first_line(error, value)


def _resolve(config: DictConfig) -> list[str]:
    """Fill in interpolations. Returns mistakes."""
    OmegaConf.register_resolver("oc.env", read_environment, replace=True)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        return [f"{error.full_key or 'interpolation'}: {_first_line(error)}"]
    return []


def _merge_nets(config: DictConfig, nets: dict[str, tuple[str, object]]) -> list[str]:
    """Check the networks' own settings against their family, and fill in its defaults. Returns mistakes."""
    mistakes = []
    for net, schema in zip("GD", FAMILIES[config.model.family]):
        own = OmegaConf.structured(schema)
        known = dict(leaves(schema))
        for name, (layer, value) in nets.items():
            if not name.startswith(f"model.{net}."):
                continue
            if mistake := _put(own, name.removeprefix(f"model.{net}."), value, known):
                mistakes.append(f"{layer}: {name}: {mistake}")
        OmegaConf.update(config, f"model.{net}", OmegaConf.to_container(own), merge=False)
    return mistakes


def _first_line(error: Exception, value: object = None) -> str:
    """Return an error's own sentence, without the lines that repeat the key and without secrets of addresses."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return public_text(str(error).split("\n")[0].strip(), *texts)


def _error(mistakes: list[str], before: str = "") -> ConfigError:
    more = f"and {len(mistakes) - MAX_TOLD:,} more"
    total = len(mistakes)
    mistakes = [text if len(text) <= 1000 else f"{text[:1000]} ..." for text in mistakes[:MAX_TOLD]]
    mistakes += [more] if total > MAX_TOLD else []
    if len(mistakes) == 1:
        return ConfigError(before + mistakes[0])
    return ConfigError(f"{before}{total} mistakes in the config", *mistakes)
