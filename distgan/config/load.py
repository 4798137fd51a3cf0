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

from distgan.config import choices, yaml_text
from distgan.config.choices import CHOOSERS, group_of, own_schema
from distgan.config.fields import default_of, leaves
from distgan.config.model_schema import FAMILIES, net_settings
from distgan.config.permissions import PERSONAL, how_to_grant, is_granted_by_environment, read_environment
from distgan.config.plugins import load_named, named_by
from distgan.config.records import flat
from distgan.config.renamed import earlier_version, new_name
from distgan.config.schema import Config
from distgan.config.suggestions import other_places
from distgan.config.units import convert
from distgan.config.validate import config_errors, eval_errors, out_of_bounds, steps_errors
from distgan.config.yaml_text import EscapedDumper, as_typed, text_settings
from distgan.errors import ConfigError, DataError
from distgan.storage.home import user_path
from distgan.storage.urls import public, public_text

MAX_TOLD = 50  # mistakes, one a line
MAX_PATH = 1000  # characters
MAX_FILES = 100  # that a config is made of, by `base:`
OTHER_SPELLINGS = {"init.from": "init.source"}  # `from` is no name of a field in Python
VALIDATED = ("degradations", "host transforms")  # kinds of parts whose steps are checked with their strengths
_KEY = re.compile(r"[\w.<-]{0,100}")


def load(
    path: str, overrides: Sequence[str] = (), *, is_saved: bool = False, more_plugins: Sequence[str] = ()
) -> Config:
    """Return the config of a YAML file (or of a run folder) with overrides applied, and its plugins loaded.

    Args:
        is_saved: Whether to read a file that a run wrote, for what it says: no plugin is loaded, and parts that there
            are not here are let through.
        more_plugins: Plugins of the command line. A run folder loads no others.

    Raises:
        ConfigError: with every mistake of every layer, one line each.
    """
    file = user_path(path)
    folder = file if file.is_dir() else None
    if folder:
        file = folder / "config.yaml"
        if not file.exists():
            raise ConfigError(f"{path} is a folder without config.yaml: neither a config nor a run")
    is_of_folder = is_saved or bool(folder)
    here = [("run folder", {"run": {"dir": str(folder)}})] if folder else []  # it may have been moved or copied
    try:
        layers = [*_files(file, (), [], is_of_folder), *here]
        own = list(_override_layers(overrides))
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply") from None
    if is_of_folder or is_run(path):
        require_own_names(dict(layers)[str(file)], str(file))
    if is_of_folder:
        _require_resolved(dict(layers)[str(file)], str(file))
    if is_saved:
        result = _merged(layers, own, str(file), known=None)
        result.plugins = named_by("", dict(layers)[str(file)])
    else:
        where = load_named(layers, own, more_plugins, file if folder or is_run(path) else None)
        result = _merged(layers, own, str(file))
        result.plugins = where
    result.run.dir = result.run.dir or f"runs/{file.stem}"
    mistakes = [*out_of_bounds(result), *config_errors(result), *([] if is_saved else steps_errors(result))]
    if mistakes:
        raise _error(mistakes)
    return result


def is_run(path: str) -> bool:
    """Return whether a path names a run folder, or the config in one."""
    file = user_path(path)
    return (file if file.is_dir() else file.parent).joinpath("environment.json").exists()


def load_mapping(values: Mapping[str, object], overrides: Sequence[str] = ()) -> Config:
    """Return the config of a mapping of a program's own, as a YAML file would hold it, with overrides applied.

    Raises:
        ConfigError: with every mistake, one line each. `run.dir` must be given, since there is no file's name for it.
    """
    layers, own = [("the config", dict(values))], list(_override_layers(overrides))
    where = load_named(layers, own, (), None)
    result = _merged(layers, own, "the config")
    result.plugins = where
    mistakes = [] if result.run.dir else ["run.dir: a config without a file needs it"]
    if mistakes := [*mistakes, *out_of_bounds(result), *config_errors(result), *steps_errors(result)]:
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
    result = _merged(layers, list(_override_layers(overrides)), "config", known="eval.")
    if mistakes := [*out_of_bounds(result), *eval_errors(result.eval), *steps_errors(result)]:
        raise _error(mistakes)
    return result


def _merged(
    layers: Sequence[tuple[str, dict]], own: Sequence[tuple[str, dict]], origin: str, known: str | None = ""
) -> Config:
    """Return the defaults with layers of values on top, bounds not checked; `own` come from the command line.

    Args:
        known: Beginning of the settings that must name parts which there are here, such as "eval."; None: no setting.
    """
    schema = dict(leaves(Config))
    config = _defaults()
    mistakes: list[str] = []
    given: dict[str, str] = {}  # setting -> the layer that gave it
    of_parts: dict[str, tuple[str, object]] = {}  # settings of parts' own: key -> (layer, value)
    granted = {name: value for _, values in own for name, value in flat(values) if name in PERSONAL}
    for i, (layer, values) in enumerate([*layers, *_choosers_first(own)]):
        for name, value in sorted(flat(values), key=lambda item: item[0] not in CHOOSERS.values()):
            name = OTHER_SPELLINGS.get(name, name)
            if not _KEY.fullmatch(name):  # it may be a line of any file
                mistakes.append(f"{layer}: a key of {len(name):,} characters, which is not the name of a setting")
                continue
            if not _has_own(config, name) and (line := new_name(name, value)):
                mistakes.append(f"{layer}: {line}")
                continue
            if name == "plugins":  # `plugins.load_named` took them
                continue
            if name in PERSONAL and i < len(layers):
                if value is not False and not granted.get(name) and not is_granted_by_environment(name):
                    mistakes.append(
                        f"{layer}: {name}={value}: a file cannot set it: {how_to_grant(name)}, or leave it out"
                    )
                continue
            if name == "model.family" and known == "" and value not in list(FAMILIES):
                mistakes.append(f"{layer}: {_unknown(name, value, 'families')}")
                continue
            if name in CHOOSERS.values() and value != OmegaConf.select(config, name):  # another part has its own
                of_parts = {key: of for key, of in of_parts.items() if CHOOSERS[group_of(key)] != name}
            if group_of(name):
                of_parts[name] = (layer, value)
                continue
            if name in CHOOSERS and value not in ({}, None):
                mistakes.append(f"{layer}: {name}: {_is_group(name, OmegaConf.select(config, CHOOSERS[name]))}")
                continue
            given[name] = layer
            if mistake := _put(config, name, value, schema):
                if mistake.startswith("Key ") and "Did you mean" not in mistake:
                    mistake += other_places(name, schema, config.model.family)
                mistakes.append(f"{layer}: {name}: {mistake}")

    for name in PERSONAL:
        if name not in granted:
            OmegaConf.update(config, name, is_granted_by_environment(name))
    mistakes += _resolve(config)
    if known is not None:
        mistakes += _unknown_parts(config, {name: of for name, of in given.items() if name.startswith(known)}, schema)
    if config.loss.name != default_of(schema["loss.name"]):  # the default penalties are those of the default loss
        for name in {"r1", "r2"} - {name.removeprefix("loss.") for name in given}:
            config.loss[name] = [0.0]
    mistakes += _merge_own(config, of_parts, known)
    if mistakes:
        raise _error(mistakes)
    try:
        result: Config = OmegaConf.to_object(config)  # type: ignore[assignment]  # of a structured config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {error.full_key or ''}: {_first_line(error)}") from None
    return result


def _choosers_first(own: Sequence[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """Return overrides with those first that choose a part, whose own settings may be written before it."""
    return sorted(own, key=lambda layer: not any(name in CHOOSERS.values() for name, _ in flat(layer[1])))


def _unknown(name: str, value: object, kind: str) -> str:
    """Return that there is no such part, with those that there are."""
    known = choices.names(kind)
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    there = ", ".join(repr(one) if one == "" else one for one in known) or "none but those of plugins"
    return f"{name}={public(str(value))!r}: choose one of {there}{hint}"


def _unknown_parts(config: DictConfig, given: Mapping[str, str], schema: dict[str, Field]) -> list[str]:
    """Return settings that name parts which there are not; `given`: the layer that gave a setting."""
    mistakes = []
    for name, layer in given.items():
        kind = schema[name].metadata["choices"] if name in schema else ""
        if not kind or kind in VALIDATED:
            continue
        value = OmegaConf.select(config, name)
        for one in [value] if isinstance(value, str) else value or []:
            if one not in choices.names(kind):
                mistakes.append(f"{layer}: {_unknown(name, one, kind)}")
    return mistakes


def _has_own(config: DictConfig, name: str) -> bool:
    """Return whether the part that is chosen so far has, or may have, a setting of this name of its own."""
    if not (group := group_of(name)):
        return False
    part = OmegaConf.select(config, CHOOSERS[group])
    schema = own_schema(group, part)
    if schema is None:
        return not _is_known(CHOOSERS[group], part)  # then it may have any
    return name.removeprefix(f"{group}.") in dict(leaves(schema))


def _is_known(chooser: str, part: str) -> bool:
    """Return whether there is such a part."""
    return part in choices.names(dict(leaves(Config))[chooser].metadata["choices"])


def _is_group(name: str, part: str) -> str:
    """Return that a part's own settings are no value, with one of them."""
    schema = own_schema(name, part)
    if schema is None:
        return f"{CHOOSERS[name]}={part} has no settings of its own: leave it out"
    return f"is a group of settings, not a value: set one of its keys, such as {name}.{next(leaves(schema))[0]}"


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


def _merge_own(config: DictConfig, given: dict[str, tuple[str, object]], known: str | None) -> list[str]:
    """Check parts' own settings against what the parts have, and fill in the defaults. Returns mistakes."""
    mistakes = []
    for group, chooser in CHOOSERS.items():
        part = OmegaConf.select(config, chooser)
        schema = own_schema(group, part)
        values = {name.removeprefix(f"{group}."): of for name, of in given.items() if group_of(name) == group}
        if schema is None:  # of an unknown part they are kept as they are, for whoever knows it
            is_known = _is_known(chooser, part)
            if is_known and values:
                name, (layer, _) = next(iter(values.items()))
                mistakes.append(f"{layer}: {group}.{name}: {chooser}={part} has no settings of its own: leave it out")
            elif not is_known and known != "":
                for name, (_, value) in values.items():
                    OmegaConf.update(config, f"{group}.{name}", value)
            continue
        own, fields = OmegaConf.structured(schema), dict(leaves(schema))
        for name, (layer, value) in values.items():
            if mistake := _put(own, name, value, fields):
                mistakes.append(f"{layer}: {group}.{name}: {mistake}")
        OmegaConf.update(config, group, OmegaConf.to_container(own), merge=False)
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
