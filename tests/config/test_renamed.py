"""Names that earlier versions used: none of them works, and each gives one line with the new name."""

import argparse
import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from runs import untrained

from distgan.cli.main import build_parser, main
from distgan.config.choices import names
from distgan.config.docs import help_keys
from distgan.config.fields import leaves
from distgan.config.load import from_dict, load, load_to_evaluate, to_yaml
from distgan.config.model_schema import FAMILIES
from distgan.config.records import to_dict
from distgan.config.renamed import RENAMED, RENAMED_NETWORK_SETTINGS, RENAMED_OPTIONS, RENAMED_VALUES, new_name
from distgan.config.schema import Config
from distgan.errors import ConfigError
from distgan.inference.loading import load_generator
from distgan.storage import checkpoint_folder

KEYS = dict(leaves(Config))
BASIC = "data: {shards: /data/faces, resolution: 64}\n"
LINES = {**{(old, 1): f"{old} is now {new}" for old, new in RENAMED.items()}} | {
    (key, old): f"{key}={old} is now {key}={new}" for (key, old), new in RENAMED_VALUES.items()
}


def with_old_name(values: dict, old: str, value: object) -> dict:
    """Settings of a saved config, with one more by an old name or with an old value."""
    section, _, key = old.partition(".")
    return values | {section: values[section] | {key: value}}


def test_new_names_exist_and_old_ones_do_not() -> None:
    assert set(RENAMED.values()) <= set(KEYS)
    assert not set(RENAMED) & set(KEYS)
    for (key, old), new in RENAMED_VALUES.items():
        allowed = get_args(KEYS[key].type) or names(KEYS[key].metadata["choices"])
        assert new in allowed
        assert old not in allowed


@pytest.mark.parametrize(("named", "line"), LINES.items(), ids=[f"{key}={value}" for key, value in LINES])
def test_an_old_name_gives_one_line_wherever_it_is(tmp_path: Path, named: tuple[str, object], line: str) -> None:
    (key, value), path = named, tmp_path / "faces.yaml"
    assert new_name(key, value) == line
    path.write_text(BASIC)
    with pytest.raises(ConfigError) as in_override:
        load(str(path), [f"{key}={value}"])
    assert str(in_override.value).splitlines() == [f"override 1 '{key}={value}': {line}"]

    section, _, last = key.partition(".")
    old = tmp_path / "old.yaml"
    old.write_text(f"base: faces.yaml\n{section}: {{{last}: {value}}}\n")
    with pytest.raises(ConfigError) as in_file:
        load(str(old))
    assert str(in_file.value).splitlines() == [f"{old}: {line}"]

    saved = with_old_name(to_dict(load(str(path))), key, value)
    for read in (lambda: from_dict(saved, "here"), lambda: load_to_evaluate([("here", saved)], [])):
        with pytest.raises(ConfigError) as in_checkpoint:
            read()
        (told,) = str(in_checkpoint.value).splitlines()
        assert told.startswith(f"here: an earlier version of distgan wrote this ({line}): use that version to resume")


@pytest.mark.parametrize(("old", "new"), RENAMED_NETWORK_SETTINGS.items())
def test_an_old_setting_of_a_network_gives_one_line(tmp_path: Path, old: str, new: str) -> None:
    assert any(new in names and old not in names for family in FAMILIES.values() for names in map(field_names, family))
    path, line = tmp_path / "faces.yaml", f"model.D.{old} is now model.D.{new}"
    path.write_text(BASIC)
    for override in (f"model.D.{old}=8", f"model.D={{{old}: 8}}"):
        with pytest.raises(ConfigError) as in_override:
            load(str(path), [override])
        assert str(in_override.value).splitlines() == [f"override 1 '{override}': {line}"]
    saved = to_dict(load(str(path)))
    saved["model"]["D"] = {old: 8}
    with pytest.raises(ConfigError) as in_checkpoint:
        from_dict(saved, "here")
    (told,) = str(in_checkpoint.value).splitlines()
    assert told.startswith(f"here: an earlier version of distgan wrote this ({line}): use that version to resume")


def field_names(schema: type) -> set[str]:
    return {field.name for field in fields(schema)}


def test_help_on_an_old_key_gives_its_new_name() -> None:
    for old, new in RENAMED.items():
        with pytest.raises(ConfigError, match=f"^{old} is now {new}$"):
            help_keys(old)
        assert help_keys(new)


def test_a_run_folder_of_an_earlier_version_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plain, run = tmp_path / "faces.yaml", tmp_path / "run"
    run.mkdir()
    plain.write_text(BASIC)
    text = to_yaml(load(str(plain)))
    for new in ("label_smoothing", "weight_clip", "color"):
        old = next(old for old, now in RENAMED.items() if now.endswith(f".{new}"))
        text = text.replace(f"  {new}:", f"  {old.partition('.')[2]}:")
    (run / "config.yaml").write_text(text)
    (run / "environment.json").write_text("{}")
    for named in (run, run / "config.yaml"):
        assert main(["train", str(named)]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert "an earlier version of distgan wrote this (" in told
        assert " is now " in told
        assert "and 2 more settings have new names" in told


def test_a_checkpoint_and_an_export_of_an_earlier_version_are_refused_in_one_line(tmp_path: Path) -> None:
    run, out = untrained(tmp_path / "run"), tmp_path / "exported"
    assert main(["export", str(run), str(out)]) == 0
    (where,) = checkpoint_folder.newest_first(run / "checkpoints")
    state = checkpoint_folder.read_state(where)
    state["config"] = with_old_name(state["config"], "loss.smooth", 0.1)
    text = json.dumps(state)
    manifest = json.loads((where / "manifest.json").read_text())
    manifest["state.json"] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}
    (where / "state.json").write_text(text)
    (where / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"an earlier version .*loss\.smooth is now loss\.label_smoothing"):
        load_generator(run)

    (description,) = out.glob("*.json")
    told = json.loads(description.read_text())
    told["origin"]["config"] = with_old_name(told["origin"]["config"], "data.crop", "squeeze")
    description.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"an earlier version .*data\.crop=squeeze is now data\.crop=stretch"):
        load_generator(out)
    told["origin"]["config"]["data"]["crop"] = "center"
    told["origin"]["config"]["model"]["G"] = told["generator"]["settings"] = {"width": 8}
    description.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"an earlier version .*model\.G\.width is now model\.G\.base_channels"):
        load_generator(out)


@pytest.mark.parametrize(("command", "old"), RENAMED_OPTIONS)
def test_an_old_option_gives_its_new_name(command: str, old: str, capsys: pytest.CaptureFixture) -> None:
    new = RENAMED_OPTIONS[command, old]
    commands = next(x for x in build_parser()._actions if isinstance(x, argparse._SubParsersAction)).choices
    assert new in commands[command]._option_string_actions
    assert old not in commands[command]._option_string_actions
    for words in ([old, "0.5"], [f"{old}=0.5"]):
        with pytest.raises(SystemExit) as left:
            main([command, "here", *words])
        assert left.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"distgan: error: {old}: did you mean {new}?"
