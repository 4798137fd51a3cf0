"""What the documentation says of messages, files and keys is so."""

import re
from pathlib import Path

import pytest
from processes import ROOT

from distgan.config.fields import leaves
from distgan.config.schema import Config

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "launch/README.md", ROOT / "slurm/README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_and_scripts_exist(page: Path) -> None:
    for name in re.findall(
        r"\b(?:distgan|tests|launch|slurm|configs)/[\w/]+\.(?:py|sh|sbatch|yaml)\b", page.read_text()
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_are_there(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text()):
        assert f"\ndef {name}(" in (ROOT / file).read_text(), (file, name)


def test_each_promise_of_security_has_a_test() -> None:
    promises = re.findall(r"^\| \*\*.*", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(promises) > 10
    for line in promises:
        assert re.search(r"\| (`tests/[\w/]+\.py::test_\w+` )+\|$", line), line


def test_messages_in_the_table_of_troubles_are_those_of_the_code() -> None:
    code = re.sub(r'"\s*f?"|\s+', " ", " ".join(p.read_text() for p in (ROOT / "distgan").rglob("*.py")))
    table = (ROOT / "docs/troubleshooting.md").read_text().split("## By symptom")[0]
    messages = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        assert message in code, message


def test_keys_in_the_table_of_troubles_exist() -> None:
    known = {name for name, _ in leaves(Config)}
    text = (ROOT / "docs/troubleshooting.md").read_text()
    named = re.findall(r"`((?:run|data|train|loss|checkpoint|optim|eval|wandb)\.[\w.]+)(?:=\w+)?`", text)
    assert named
    assert set(named) <= known


def test_the_glossary_has_every_key_that_the_code_logs() -> None:
    code = "".join(p.read_text() for p in (ROOT / "distgan").rglob("*.py") if p.name != "renamed.py")  # of old names
    groups = "Progress|EMA|Loss|Logits|Optim|Diversity|Augment|Balance|Data|Perf|Resources|Restoration"
    logged = set(re.findall(rf'"((?:{groups})/\w+)"', code))
    told = set(re.findall(rf"`((?:{groups})/\w+)`", (ROOT / "docs/metrics.md").read_text()))
    assert len(logged) > 30
    assert logged <= told
    assert {name for name in told - logged if not name.endswith("_std")} <= {"Logits/real_mean", "Logits/fake_mean"}
