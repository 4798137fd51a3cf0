"""What users meet most when something is wrong, word for word; on two ranks, once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ROOT, environment
from runs import make_digits, write_config

from distgan.cli.main import GPU_FULL, HOST_FULL, main
from distgan.config.batch_plan import BatchPlan, less_memory, make_batch_plan
from distgan.config.load import load
from distgan.config.schema import Config
from distgan.config.validate import warnings
from distgan.errors import FailedError, out_of_memory

FULL_HOST = "[enforce fail at alloc.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


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
    command = ["check", "--ranks", "2"] if case == "batch plan" else ["train"]
    assert main([*command, str(config), f"run.dir={tmp_path / 'run'}", *overrides]) == code
    errors = capsys.readouterr().err
    assert told.format(file=config) in errors
    assert errors.startswith(f"distgan {command[0]}: ")
    assert "Traceback" not in errors


@pytest.mark.slow  # one such launch is among the quick ones of test_launch.py
@pytest.mark.multi
@pytest.mark.parametrize("case", CASES)
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
    """In one line, with what was asked and free, and the next smaller micro-batch that divides the rank's images."""
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total capacity of 79.15 GiB of which 18.75 MiB "
        "is free. Including non-PyTorch memory, this process has 79.12 GiB memory in use. Of the allocated"
    )
    config = Config()
    told = FailedError.of(error, 3, Path("runs/faces"), less_memory(config, BatchPlan(256, 2, 64, 2)))
    assert (told.exit_code, told.rank) == (5, 3)
    assert str(told) == (
        "GPU 1 is out of memory (20.00 MiB asked, 18.75 MiB of 79.15 GiB free): a rank passes 64 images at a time "
        "(train.micro_batch): train.micro_batch=32 makes the same update in more passes; traceback in "
        "runs/faces/logs/rank_00003.txt"
    )
    for text, line, on_gpu in (
        (FULL_HOST, "the machine is out of memory (9 bytes asked)", False),
        ("Unable to allocate 7.3 TiB for an array with shape", "the machine is out of memory (7.3 TiB asked)", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "the GPU is out of memory", True),
    ):
        assert out_of_memory(text) == (line, on_gpu)
    assert out_of_memory("CUDA error: an illegal memory access was encountered") is None


def test_less_memory_is_a_setting_that_is_accepted_and_not_set_yet(config: Path) -> None:
    for group in (0, 2, 3, 4):
        for micro in (1, 2, 3, 4, 6, 12):
            own = load(str(config), ["train.batch=12", f"train.micro_batch={micro}", "model.minibatch_layer=stddev"])
            own.model.minibatch_group_size = group
            if group and micro % group:
                continue
            told = less_memory(own, make_batch_plan(own, 1))
            if found := re.search(r"train\.micro_batch=(\d+)", told):
                own.train.micro_batch = int(found[1])
                plan = make_batch_plan(own, 1)  # it is accepted
                assert plan.micro_batch < micro
                changes = any("the update depends" in line for line in warnings(own, plan))
                assert ("makes another update, by model.minibatch_layer," in told) == changes
            else:
                assert micro == (group or 1)
                assert "train.precision=bf16" in told
    plan = BatchPlan(12, 1, 1, 12)
    assert "bf16" not in less_memory(load(str(config), ["train.precision=bf16"]), plan)
    assert "model.G.widths" in less_memory(load(str(config), ["model.family=r3gan"]), plan)
    for norm in ("batch", "conditional"):
        own = load(str(config), ["model.family=resnet", f"model.G.norm={norm}"])
        assert "makes another update, by model.G.norm," in less_memory(own, BatchPlan(12, 1, 12, 1))
        assert any("batch norm in G" in line for line in warnings(own, BatchPlan(12, 1, 6, 2)))


@pytest.mark.parametrize(
    "text, told",
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has",
            f"the GPU is out of memory (2.00 GiB asked): {GPU_FULL}",
        ),
        (FULL_HOST, f"the machine is out of memory (9 bytes asked): {HOST_FULL}"),
    ],
)
def test_a_command_out_of_memory_ends_in_one_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("distgan.inference.generate.generate", full)
    assert main(["generate", "runs/faces", "--out", str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err == f"distgan generate: {told}\n"
    assert "nvidia" not in HOST_FULL


def test_bench_out_of_memory_names_the_setting(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("distgan.tools.bench.bench.Bench.measure", full)
    assert main(["bench", str(config), "train.batch=12"]) == 5
    told = "the GPU is out of memory (2.00 GiB asked): a rank passes 12 images at a time (train.micro_batch): "
    assert told + "train.micro_batch=6 makes the same update" in capsys.readouterr().err
