"""Help on the settings: complete, current, and able to say how two configs differ."""

import re
from pathlib import Path

import pytest

from distgan.cli.main import main
from distgan.config.docs import COMMAND, diff, help_keys, markdown, rows
from distgan.config.fields import leaves
from distgan.config.load import load
from distgan.config.model_schema import FAMILIES
from distgan.config.schema import Config
from distgan.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def basic(tmp_path: Path) -> Path:
    path = tmp_path / "faces.yaml"
    path.write_text("data: {shards: /data/faces, resolution: 64}\n")
    return path


def test_every_setting_is_explained() -> None:
    found = list(rows())
    assert {row.key for row in found if not row.of} == {name for name, _ in leaves(Config)}
    assert {row.of for row in found} == {"", *(f"model.family={name}" for name in FAMILIES)}
    assert all(row.about and row.type for row in found)


def test_the_table_of_a_group() -> None:
    lines = help_keys("train")
    assert all(line.startswith("train.") for line in lines)
    images = next(line for line in lines if line.startswith("train.images "))
    assert re.split(r"\s{2,}", images) == [
        "train.images",
        "integer",
        "1M",
        "images",
        "stop after these images",
    ]
    precision = next(line for line in lines if line.startswith("train.precision "))
    assert precision.endswith("precision of the networks (fp32, bf16)")
    assert len({line.index(" stop") for line in lines if " stop after th" in line}) == 1  # columns stand in line


def test_a_part_of_a_name_finds_its_keys() -> None:
    assert {line.split()[0] for line in help_keys("half_life")} == {"ema.half_life"}
    with pytest.raises(ConfigError, match="groups are plugins, run, data, model"):
        help_keys("nonsense")


def test_the_page_of_all_settings_is_current() -> None:
    assert (DOCS / "config.md").read_text().splitlines() == markdown(), f"run: {COMMAND} > docs/config.md"


def test_the_page_is_made_by_the_command_that_it_names(capsys: pytest.CaptureFixture) -> None:
    assert main(COMMAND.split()[1:]) == 0
    page = capsys.readouterr().out
    assert page.splitlines() == markdown()
    assert f"`{COMMAND} > docs/config.md`" in page
    rendered = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rendered) == len(list(rows()))
    assert all(len(re.split(r"(?<!\\)\|", line)) == 7 for line in rendered)  # five cells, whatever a text holds
    assert not any(re.search(r"<\w", line) for line in rendered)  # which a browser would take for HTML


def test_how_two_configs_differ(basic: Path) -> None:
    old, new = load(str(basic)), load(str(basic), ["train.batch=32", "train.images=2M", "model.family=r3gan"])
    before, after = "\n".join(diff(old, new)).split("may change when a run is resumed:\n")
    assert re.search(r"^  train.batch +64 +-> +32$", before, re.M)
    assert re.search(r"^  model.G.base_channels +64 +-> +\(none\)$", before, re.M)
    assert after.split() == ["train.images", "1000000", "->", "2000000"]
    assert diff(old, old) == ["no difference"]


def test_the_command_that_tells_the_difference(basic: Path, capsys: pytest.CaptureFixture) -> None:
    other = basic.with_name("other.yaml")
    other.write_text("base: faces.yaml\nloss: {name: hinge}\n")
    assert main(["config", "--diff", str(basic), str(other)]) == 0
    assert re.search(r"loss.name +'rpgan' +-> +'hinge'", capsys.readouterr().out)
    assert main(["config", "--diff", str(basic), str(other), "loss.r1=3"]) == 2
    assert "--diff compares two files, without overrides: loss.r1=3 is one too many" in capsys.readouterr().err
    assert main(["config", "--diff", str(basic), str(basic.with_name("nothing.yaml"))]) == 2
    assert "nothing.yaml: no such file" in capsys.readouterr().err
