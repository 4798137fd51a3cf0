"""Ratios of the benchmark that must not slip, with room for a busy machine; `benchmark.py` prints them all."""

import statistics
from collections.abc import Callable
from pathlib import Path

import benchmark
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def figures(run: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The medians that a benchmark reports, by the beginning of their names."""
    found = {}
    monkeypatch.setattr(
        benchmark, "report", lambda name, values, *_: found.__setitem__(name, statistics.median(values))
    )
    run(folder)
    return found


@pytest.mark.parametrize(("side", "num", "bound"), [(256, 256, 0.4), (32, 2560, 0.2)])
def test_loader(side: int, num: int, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(lambda folder: benchmark.bench_loader_at(folder, side, num, ""), tmp_path, monkeypatch)
    assert found[f"loader, {side} px: CPU time over WebDataset + DataLoader"] <= bound


def test_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(lambda folder: benchmark.bench_step(folder, rounds=6), tmp_path, monkeypatch)
    assert found["step: DCGAN-64, batch 16, process time over a bare loop"] <= 1.1
    assert found["step: a null model, host time added to an iteration"] <= 1.0


@pytest.mark.slow
def test_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures(benchmark.bench_pack, tmp_path, monkeypatch)
    assert max(found.values()) <= 1.4
