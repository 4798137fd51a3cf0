"""What users meet most when something is wrong, word for word; on two ranks, once."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, environment
from runs import make_digits, write_config

from distgan.cli.main import main
from distgan.errors import FailedError


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", digits)


CASES = {
    "typo": (
        ["train.batchh=3"],
        2,
        "override 2 'train.batchh=3': train.batchh: Key 'batchh' not in 'Train'. Did you mean: 'batch'?",
    ),
    "typo in a file": (
        [],
        2,
        "{file}: optim.G.lrr: Key 'lrr' not in 'Optimizer'. Did you mean: 'lr'?",
    ),
    "wrong type": (
        ["optim.G.eps=fast"],
        2,
        "override 2 'optim.G.eps=fast': optim.G.eps: Value 'fast' of type 'str' could not be converted to Float",
    ),
    "missing shards": (["data.shards=/no/such/folder"], 3, "/no/such/folder"),
    "batch plan": (
        ["train.batch=13"],
        2,
        "train.batch=13 cannot be spread evenly over 2 ranks: use 1 ranks, or train.batch=12 or 14",
    ),
}


def launched(config: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ROOT / "launch" / "cpu.sh"), str(config), *overrides],
        env=environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_word_for_word(
    case: str, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, code, told = CASES[case]
    if case == "typo in a file":
        config.write_text(config.read_text().replace("optim: {G: {lr:", "optim: {G: {lrr:"))
    if case == "batch plan":
        pytest.skip("is of two ranks: below")
    assert main(["train", str(config), f"run.dir={tmp_path / 'run'}", *overrides]) == code
    errors = capsys.readouterr().err
    assert told.format(file=config) in errors
    assert errors.startswith("distgan train: ")
    assert "Traceback" not in errors


@pytest.mark.multi
@pytest.mark.parametrize(
    "case", [case if case == "batch plan" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_two_ranks_say_it_once(case: str, tmp_path: Path, config: Path) -> None:
    overrides, _, told = CASES[case]
    if case == "typo in a file":
        config.write_text(config.read_text().replace("optim: {G: {lr:", "optim: {G: {lrr:"))
    # A word of dashes keeps the script from looking at the config before it launches: the ranks are to find it.
    done = launched(config, "--", f"run.dir={tmp_path / 'run'}", *overrides)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("distgan train: ")]
    assert len(lines) == 1, done.stderr
    assert told.format(file=config) in lines[0]


def test_a_resume_with_other_settings_word_for_word(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
) -> None:
    own = ["train", str(config), f"run.dir={tmp_path / 'run'}", "train.images=240"]
    assert main(own) == 0
    capsys.readouterr()
    assert main([*own, "loss.r1=3", "train.images=480"]) == 2
    assert capsys.readouterr().err == (
        "distgan train: the checkpoint was trained with other settings: loss.r1 was [1.0], is [3.0]. Put them back, "
        "choose another run.dir, or set run.allow_config_change=true\n"
    )
    assert main([*own, "data.shards=/no/such/folder", "train.images=480"]) == 3


def test_out_of_memory_has_a_way_out() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of 10 GiB")
    assert str(FailedError.of(error, 3, Path("runs/faces"))) == (
        "RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10 GiB (lower "
        "train.micro_batch); traceback in runs/faces/logs/rank_00003.txt"
    )
