"""Ratios of the benchmark that must not slip; `benchmark.py` prints them all.

Neighbours on a busy machine stretch single rounds to twice their length, so the lowest of the interleaved rounds is
held to a bound: a loss of speed raises every round, a neighbour only some of them.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import benchmark
import pytest
import torch
from processes import ROOT, environment


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def figures(run: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The lowest round of each line that a benchmark reports."""
    found = {}
    monkeypatch.setattr(benchmark, "report", lambda name, values, *_: found.__setitem__(name, min(values)))
    run(folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("side", "num", "bound"), [(256, 256, 0.4), (32, 2560, 0.2)])
def test_loader(side: int, num: int, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(lambda folder: benchmark.bench_loader_at(folder, side, num, ""), tmp_path, monkeypatch)
    assert found[f"loader, {side} px: CPU time over WebDataset + DataLoader"] <= bound


@pytest.mark.slow
def test_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(lambda folder: benchmark.bench_step(folder, rounds=4), tmp_path, monkeypatch)
    assert found["step: DCGAN-64, batch 16, CPU time over a bare loop"] <= 1.05
    own = found["step: the bare loop's own host time for an iteration"]  # machines differ, and so does their speed
    assert found["step: a null model, host time added to an iteration"] <= 0.7 * own


@pytest.mark.slow
def test_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(benchmark.bench_pack, tmp_path, monkeypatch)
    assert max(found.values()) <= 1.4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "command", ["memory_formats.py configs/sngan-cifar10-small.yaml 4 1", "penalty_precision.py 8"], ids=lambda c: c[:6]
)
def test_what_the_documentation_measures_runs(command: str) -> None:
    script, *arguments = command.split()
    run = [sys.executable, f"tests/e2e/{script}", *arguments]
    done = subprocess.run(run, cwd=ROOT, env=environment(PYTHONPATH="."), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
