"""The script for a machine with a GPU does all that needs none; what breaks in it breaks nothing else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, environment

sys.path.insert(0, str(ROOT / "tests"))

import gpu_check


def _fails() -> dict:
    gpu_check.require(False, "7 is no 8")
    return {}


def _dies() -> dict:
    os._exit(9)


def _hangs() -> dict:
    time.sleep(600)
    return {}


def test_a_check_that_breaks_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    checks = [
        gpu_check.Check("fails", _fails, 0),
        gpu_check.Check("dies", _dies, 0),
        gpu_check.Check("fine", lambda: {"x": 1}, 0),
        gpu_check.Check("long", _fails, 1000),
        gpu_check.Check("hangs", _hangs, 0),
    ]
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    assert gpu_check.main([str(tmp_path), "--minutes", "0.1"]) == 1
    found = {one["check"]: one for one in map(json.loads, (tmp_path / "gpu_check.jsonl").read_text().splitlines())}
    assert [one["state"] for one in found.values()] == ["failed", "failed", "passed", "skipped", "failed"]
    assert found["fails"]["why"] == "7 is no 8"
    assert found["fine"]["x"] == 1
    assert "not done" in found["hangs"]["why"]


def test_the_table_has_what_was_measured() -> None:
    speed = {"check": "speed dcgan64 train.tf32=true", "img_per_sec": 1234.5, "ms": 9.87, "host_ms": 1.0}
    peak = {"check": "environment", "device": "a GPU", "torch": "2", "peak_tflops_tf32": 200.0}
    table = gpu_check.table([peak, {**speed, "tflops": 50.0}])
    assert "| `dcgan64 train.tf32=true` | 1,234 | 9.9 | 1.0 |" in table
    assert "| 25% |" in table


def test_all_configs_of_a_gpu_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "ON_CPU", False)
    for name in gpu_check.FAMILIES:
        for settings in ((), gpu_check.IN_FP32, ("train.deterministic=strict",)):
            gpu_check.config_of(name, *settings)
    for name, settings, _ in gpu_check.VARIANTS:
        gpu_check.config_of(name, *settings)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_checks_run_on_a_cpu(tmp_path: Path) -> None:
    names = ["environment", "bad", "waits", "float64", "copies", "ddp", "speed sngan", "features", "over"]
    command = [sys.executable, str(ROOT / "tests" / "gpu_check.py"), str(tmp_path), "--minutes", "18", "--only", *names]
    done = subprocess.run(command, env=environment(ACCELERATE_USE_CPU="true"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| `sngan-cifar10` |" in (tmp_path / "performance.md").read_text()
