"""The run folder: one live run at a time, and lines that are taken back when a run resumes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distgan.errors import MachineError
from distgan.storage.run_dir import RunDir


def row(images: int) -> dict[str, float]:
    return {"Progress/images": images, "Loss/D": images / 7}


def images_of(path: Path) -> list[int]:
    return [json.loads(line)["Progress/images"] for line in path.read_text().splitlines()]


def test_a_second_live_run_is_kept_out(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    folder.open(["distgan", "train"])
    code = f"from distgan.storage.run_dir import RunDir; RunDir({str(tmp_path / 'run')!r}).open([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "is in use by a live run (process" in done.stderr
    del folder  # the lock goes with its owner, whatever way that ends
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("")
    for path, file in (("file", "file"), ("file/run/1", "file"), ("run", "run/samples")):
        with pytest.raises(MachineError, match=f"run.dir={tmp_path}/{path}: {tmp_path}/{file} is a file: choose ano"):
            RunDir(tmp_path / path).open([])


def test_lines_after_the_checkpoint_are_taken_back_and_kept_aside(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for images in (100, 200, 300, 400):
        folder.add_metrics(row(images))
    with open(folder.metrics, "a") as file:
        file.write('{"Progress/ima')  # a crash cut this line
    assert folder.truncate_after(200) == 400
    assert images_of(folder.metrics) == [100, 200]
    orphans = (tmp_path / "metrics.orphan-200.jsonl").read_text().splitlines()
    assert [json.loads(line)["Progress/images"] for line in orphans[:2]] == [300, 400]
    folder.add_metrics(row(300))
    assert folder.truncate_after(300) == 400  # what was once logged is remembered
    assert images_of(folder.metrics) == [100, 200, 300]


def test_audit_lines_from_the_checkpoint_on_are_taken_back(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    for rank in (0, 1):
        lines = [json.dumps({"position": p, "shard": "s", "key": "k"}) for p in range(rank, 10, 2)]
        (tmp_path / "audit" / f"rank{rank}.jsonl").write_text("\n".join(lines) + "\n")
    RunDir(tmp_path).truncate_after(4)
    positions = [
        json.loads(line)["position"]
        for path in (tmp_path / "audit").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert sorted(positions) == [0, 1, 2, 3]


def test_status_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert folder.read_status() == {}
    folder.write_status("running", images=5)
    folder.write_status("finished", images=9)
    assert {k: v for k, v in folder.read_status().items() if k != "time"} == {"state": "finished", "images": 9}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_every_start_leaves_its_environment(tmp_path: Path) -> None:
    for command in (["distgan", "train", "a.yaml"], ["distgan", "train", "a.yaml", "x=b c"]):
        folder = RunDir(tmp_path)
        folder.open(command)
        del folder
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["command"] for start in starts] == ["distgan train a.yaml", "distgan train a.yaml 'x=b c'"]
    assert starts[0]["packages"]["torch"]
