"""`distgan check`: what it tells of a run that was not started, and how soon it tells a mistake."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import environment
from runs import write_config

from distgan.cli.main import main
from distgan.tools import check


def told(capsys: pytest.CaptureFixture, config: Path, *arguments: str) -> dict[str, str]:
    """The lines of a check by what stands before their first colon."""
    assert main(["check", str(config), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}


def test_the_plan_in_numbers(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    own = ("train.images=1200", "train.n_critic=2", "train.micro_batch=2", f"run.dir={run}", "--ranks", "3")
    found = told(capsys, config, *own)
    assert found["batch"] == "12 images = 3 rank(s) x 2 pass(es) x 2, 2 D step(s) to a G step"
    assert found["length"] == f"1,200 images, {1200 / 1797:.1f} epochs, 100 D and 50 G steps"
    assert found["data"].startswith("1,797 images of 10 classes in")
    assert "size 16x16 pixels" in found["data set card"]
    assert "source digits.npz" in found["data set card"]
    assert found["run folder"] == f"{run}, a new run"
    assert found["wandb"] == "disabled (from WANDB_MODE)"
    assert "warning" not in found
    assert not run.exists()
    epochs = told(capsys, config, "train.images=17970k")["length"].split(", ")[1]
    assert epochs == "10,000.0 epochs"


@pytest.mark.parametrize("ranks", ["0", "-1"])
def test_fewer_than_one_rank_are_refused(ranks: str, config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", str(config), "--ranks", ranks]) == 2
    assert f"--ranks {ranks}: at least 1" in capsys.readouterr().err


def test_what_would_be_stored(config: Path, capsys: pytest.CaptureFixture) -> None:
    """Checkpoints that are kept, and one more; a grid at the start, at each interval and at the end."""
    from distgan.config.load import load
    from distgan.models.networks import checkpoint_bytes
    from distgan.training.factory import build_nets

    own = ["train.images=1200", "checkpoint.every=100", "checkpoint.keep_last=2", "checkpoint.keep_every=300"]
    found = told(capsys, config, *own)
    size = checkpoint_bytes(*build_nets(load(str(config), own), 10))
    samples = 4 * (2 * 3) * 3 * 16**2
    assert found["disk"].startswith(f"{(6 + 1) * size / 1e6 + samples / 1e6:,.1f} MB at most for 6 checkpoint(s)")
    assert "and 4 sample grid(s)" in found["disk"]


def test_a_disk_that_is_too_small(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    found = told(capsys, config, "train.images=1M", "checkpoint.every=1k", "checkpoint.keep_every=1k")
    assert re.match(r"the disk may become full: [\d.,]+ [GM]B needed, 1.0 MB free; lower checkpoint", found["warning"])
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["check", str(config), f"run.dir={tmp_path / 'new' / 'run'}"]) == 5
    assert "a checkpoint needs" in capsys.readouterr().err


def test_a_data_set_that_does_not_go_with_the_config(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check", str(config), "data.resolution=32", "model.conditional=false"]) == 0
    lines = capsys.readouterr().out
    assert (
        "warning: the images are stored at 16x16 pixels and would be enlarged to 32x32 (data.resolution=32) each time"
        in lines
    )
    assert "warning: the data set has 10 classes, which model.conditional=false does not use" in lines


def test_a_data_set_without_a_card(tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(digits, plain)
    for text in (None, "[1]", '{"resolution": "big", "classes": 3, "class_counts": ["x"], "skipped": [2]}'):
        (plain / "dataset.json").unlink(missing_ok=True)
        if text:
            (plain / "dataset.json").write_text(text)
        config = write_config(tmp_path / "plain.yaml", plain)
        assert "1,797 images" in told(capsys, config)["data"]


def test_a_run_that_would_go_on(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    own = (f"run.dir={run}", "train.images=4200")
    assert main(["train", str(config), *own, "train.images=12"]) == 0
    capsys.readouterr()
    (run / "metrics.jsonl").unlink()
    found = told(capsys, config, *own)
    assert found["run folder"] == f"{run}, resumes from step-000000000012: 4,188 images are left"
    assert found["changed since the checkpoint"] == "train.images: 12 -> 4200"
    assert "speed" not in found
    (run / "metrics.jsonl").write_text('{"Progress/images": 600, "Perf/img_per_sec": 2.0}\n')
    assert told(capsys, config, *own)["speed"].startswith("2 images/s when last seen, 7 kimg/h: ")
    assert main(["check", str(config), *own, "run.resume=never"]) == 2  # as `train` would


def test_a_mistake_is_told_within_a_second_without_torch(config: Path) -> None:
    """A second of the processor in the best of three tries, since a busy machine is no fault of the code."""
    code = (
        "import sys; from distgan.cli.main import main; code = main(sys.argv[1:]); "
        "print({'torch', 'accelerate', 'wandb', 'webdataset', 'numpy'} & set(sys.modules)); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "check", str(config), "train.batchh=3"]
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 2
    assert done.stdout == "set()\n"
    assert (
        "override 1 'train.batchh=3': train.batchh: Key 'batchh' not in 'Train'. Did you mean: 'batch'?" in done.stderr
    )
    assert min(took) < 1


def test_a_run_folder_below_a_file(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    for run in (config, config / "run"):
        assert main(["check", str(config), f"run.dir={run}"]) == 5
        assert f"run.dir={run}: {config} is a file: choose another run.dir" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_folder_on_a_read_only_disk(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert main(["check", str(config), f"run.dir={closed / 'run'}"]) == 5
    assert "cannot be written" in capsys.readouterr().err
