"""What a GPU would be asked to do in an iteration, shown without one: see fakecuda.py for what that can show."""

import itertools
import json
from pathlib import Path

import fakecuda
import pytest
import torch
from fakecuda import CHUNKED, QUICK, SLOW, Case
from processes import ROOT

pytestmark = pytest.mark.timeout(900)  # one process does the work of all quick tests

# Where the host may wait, and how docs/performance.md says so.
EVENT = "device_copy.py:wait waits for an event"
DOCUMENTED = {
    EVENT: "for the copy of the batch before",
    "schedulers.py:update takes a number": "where a controller updates",
    "gan_step.py:_update takes a number": "`optim.*.name=rmsprop`",
}
BALANCE = "balance.adapt=d_lr"
FAULTY = [
    Case("unpinned", "dcgan64.yaml", (), "memory that is not pinned"),
    Case("number", "dcgan64.yaml", (BALANCE,), "a number of the host"),
    Case("table", "restore-small.yaml", ("restore.degrade=[{jpeg: [30, 90]}]", "loss.r1=0"), "a table of the host"),
    Case("more", "dcgan64.yaml", (), "one launch more"),
    Case("mix", "dcgan64.yaml", (), "a tensor of the host"),
    Case("look", "dcgan64.yaml", (), "a number of the device"),
]
QUICK_FAULTS = ("unpinned", "more", "look")  # the others: in slow tests
WAITING = [
    Case("rmsprop", "dcgan64.yaml", ("optim.D.name=rmsprop", "optim.G.name=rmsprop")),
    Case("controller", "dcgan64.yaml", (BALANCE, "balance.every=32")),
]


@pytest.fixture(scope="module")
def library() -> Path:
    return fakecuda.library_or_skip()


@pytest.fixture(scope="module")
def found(library: Path) -> dict[str, dict]:
    return fakecuda.run(library, [*QUICK, *(case for case in FAULTY if case.name in QUICK_FAULTS)])


@pytest.fixture(scope="module")
def found_slowly(library: Path) -> dict[str, dict]:
    return fakecuda.run(library, [*WAITING, *(case for case in FAULTY if case.name not in QUICK_FAULTS)])


def complaints(case: Case, told: dict) -> list[str]:
    """What is wrong with an iteration of a case whose only wait may be that for the copy of the batch before."""
    if "error" in told:
        return [told["error"]]
    wrong = [f"the host waits: {what}, {num} times" for what, num in told["waits"].items() if what != EVENT]
    wrong += [f"{name} mixes tensors of the host and the device" for name in told["mixes"]]
    wrong += [f"train.deterministic=strict refuses {name}" for name in told["refused"]]
    if told["copies"] != told["arrays"]:
        wrong.append(f"{told['copies']} copies that nobody waits for, of {told['arrays']} arrays of the batches")
    return wrong + over_budget(case, told)


def over_budget(case: Case, told: dict) -> list[str]:
    budget = json.loads(fakecuda.BUDGET.read_text())
    if budget["torch"] != torch.__version__ or case.name not in budget:
        return []
    return [
        f"a step of {net} starts {told[net]} launches, and {most} are allowed: if that is worth it, "
        f"`python tests/helpers/fakecuda.py` counts anew"
        for net, most in zip("DG", budget[case.name])
        if told[net] > most
    ]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_an_iteration_waits_for_its_batch_alone(case: Case, found: dict[str, dict]) -> None:
    assert complaints(case, found[case.name]) == []


@pytest.mark.slow
def test_what_waits_is_documented(found_slowly: dict[str, dict]) -> None:
    waits = {what for case in WAITING for what in found_slowly[case.name]["waits"]}
    assert waits == set(DOCUMENTED)
    text = (ROOT / "docs" / "performance.md").read_text()
    assert [words for words in DOCUMENTED.values() if words not in text] == []


@pytest.mark.parametrize(
    "name, says",
    [
        ("unpinned", "device_copy.py:__call__ copies to the device"),
        pytest.param("number", "gan_step.py:d_step copies to the device", marks=pytest.mark.slow),
        pytest.param("table", "degrade.py:_on_device copies to the device", marks=pytest.mark.slow),
        ("look", "gan_step.py:_images takes a number"),
        pytest.param("mix", "device", marks=pytest.mark.slow),
    ],
)
def test_a_fault_shows(name: str, says: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue("found" if name in QUICK_FAULTS else "found_slowly")
    (case,) = (case for case in FAULTY if case.name == name)
    assert any(says in wrong for wrong in complaints(case, found[name])), found[name]


def test_one_launch_more_shows(found: dict[str, dict]) -> None:
    assert found["more"]["D"] == found["dcgan64"]["D"] + 1


def test_the_budget_has_all_cases() -> None:
    names = [case.name for case in (*QUICK, *SLOW, *CHUNKED)]
    budget = json.loads(fakecuda.BUDGET.read_text())
    assert sorted([*names, "torch"]) == sorted(budget)
    assert f"{sum(budget['r3gan-ffhq64']):,}" in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_config_waits_mixes_or_exceeds_its_budget(library: Path) -> None:
    told = fakecuda.run(library, SLOW, timeout=1700)
    wrong = {case.name: complaints(case, told[case.name]) for case in SLOW}
    assert {name: what for name, what in wrong.items() if what} == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_combination_waits_or_mixes(library: Path) -> None:
    """Families, losses and precisions, each with one of some penalties and one of some augmentations."""
    families = ("folder-small", "hourglass128-small", "sngan-cifar10-small", "r3gan-cifar10-small")
    losses = ("non_saturating", "hinge", "wasserstein", "lsgan", "rpgan")
    gp = ("loss.gp=10", "loss.r1=0", "loss.r2=0")
    penalties = itertools.cycle([("loss.r1=1", "loss.r2=1", "loss.gp=0"), gp, ("loss.r1=0", "loss.r2=0", "loss.gp=0")])
    pipes = itertools.cycle(["none", "flip", "diffaugment", "ada", "ada-cutout"])
    cases = []
    for family, loss, precision in itertools.product(families, losses, ("fp32", "bf16")):
        # Batch norm goes with no penalty, and a smooth target with few losses.
        plain = ("model.D.norm=none", "loss.label_smoothing=0") if family.startswith("hourglass") else ()
        settings = (f"loss.name={loss}", f"train.precision={precision}", f"augment.pipe={next(pipes)}", *plain)
        penalty = next(penalties) if loss != "wasserstein" else gp
        cases.append(Case(" ".join((family, *settings, *penalty)), f"{family}.yaml", (*settings, *penalty)))
    told = fakecuda.run(library, cases, timeout=1700)
    wrong = {case.name: complaints(case, told[case.name]) for case in cases}
    assert {name: what for name, what in wrong.items() if what} == {}
