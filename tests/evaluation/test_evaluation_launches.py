"""What a chunk of an evaluation or of generation asks of a GPU, shown without one: see fakecuda.py."""

import json
from pathlib import Path

import fakecuda
import pytest
import torch
from fakecuda import CHUNKED, EVALUATION, Case
from processes import ROOT

pytestmark = pytest.mark.timeout(900)  # one process does the work of all quick tests

QUICK = [case for case in CHUNKED if case.name in ("evaluate dcgan64", "generate sngan-cifar10", "metrics")]
SLOW = [case for case in CHUNKED if case not in QUICK]
TOY = ("eval.extractor=toy",)
FAULTY = [
    Case("evaluate host", "dcgan64.yaml", TOY, "pixels through the host"),
    Case("evaluate more", "dcgan64.yaml", TOY, "one launch more"),
    Case("evaluate look", "dcgan64.yaml", TOY, "a number of the device"),
]
# A chunk's pixels become files on the host, and images are chosen there by their scores. Nothing else is waited for.
PIXELS, SCORES = "image_values.py:to_pixels copies to the host", "generate.py:_draw_best copies to the host"
ALLOWED = {"generate": {PIXELS: 1}, "keep-best": {PIXELS: 1, SCORES: 1}}


@pytest.fixture(scope="module")
def library() -> Path:
    return fakecuda.library_or_skip()


@pytest.fixture(scope="module")
def found(library: Path) -> dict[str, dict]:
    return fakecuda.run(library, [*QUICK, *FAULTY], worker=EVALUATION)


def complaints(case: Case, told: dict) -> list[str]:
    if "error" in told:
        return [told["error"]]
    wrong = [f"{name} mixes tensors of the host and the device" for name in told["mixes"]]
    wrong += [f"train.deterministic=strict refuses {name}" for name in told["refused"]]
    if told["waits"] != ALLOWED.get(case.name.split()[0], {}) and case.name != "metrics":
        wrong.append(f"the host waits in a chunk: {told['waits']}")
    budget = json.loads(fakecuda.BUDGET.read_text())
    if budget["torch"] == torch.__version__ and case.name in budget and told["launches"] > budget[case.name][0]:
        wrong.append(
            f"a chunk starts {told['launches']} launches, and {budget[case.name][0]} are allowed: if that is worth it, "
            "`python tests/helpers/fakecuda.py` counts anew"
        )
    return wrong


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_chunk_waits_for_what_becomes_a_file_alone(case: Case, found: dict[str, dict]) -> None:
    assert complaints(case, found[case.name]) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("evaluate host", "sampling.py:display"),
        ("evaluate look", "measure.py:extract takes a number"),
    ],
)
def test_a_fault_shows(name: str, says: str, found: dict[str, dict]) -> None:
    (case,) = (case for case in FAULTY if case.name == name)
    assert any(says in wrong for wrong in complaints(case, found[name])), found[name]


def test_one_launch_more_for_each_forward_shows(found: dict[str, dict]) -> None:
    assert found["evaluate more"]["launches"] == found["evaluate dcgan64"]["launches"] + 256 // 64


@pytest.mark.slow
def test_no_evaluation_or_generation_waits_mixes_or_exceeds_its_budget(library: Path) -> None:
    told = fakecuda.run(library, SLOW, worker=EVALUATION)
    wrong = {case.name: complaints(case, told[case.name]) for case in SLOW}
    assert {name: what for name, what in wrong.items() if what} == {}


def test_what_waits_is_documented() -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    text = " ".join(text.split())
    assert all(words in text for words in ("one copy of each chunk's pixels", "`--keep-best` one more, of its scores"))
