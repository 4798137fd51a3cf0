"""The scripts in slurm/ and launch/ in a hostile environment; commands only write down how they were called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

RECORD = f"""#!{sys.executable}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "scontrol" and sys.argv[1] == "show":
    print("node1")
"""
JOB = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NODELIST": "node[01-04,7],gpu-1.cluster_a",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "5",
    "SLURM_CPUS_PER_TASK": "08",
}
ARRAY = {"SLURM_ARRAY_JOB_ID": "1233", "SLURM_ARRAY_TASK_ID": "2"}
NUMBERS = ("JOB_ID", "RESTART_COUNT", "NTASKS", "NNODES", "CPUS_PER_TASK", "ARRAY_JOB_ID", "ARRAY_TASK_ID")
CODE = (
    "PATH[$(touch ran)]",
    "a[$(touch ran)]",
    "1e touch ran",
    "1;touch ran",
    "$(touch ran)",
    "`touch ran`",
    "-1",
    "1 2",
    "\x1b[2J",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the scripts, the file of a sweep, and the commands."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol", "python"):
        (tmp_path / "bin" / name).write_text(RECORD)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("slurm", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(place: Path, script: str, *words: str, **variables: str) -> tuple[int, list[list[str]], str]:
    """The exit code, the calls of commands, and what stderr shows."""
    (place / "calls").write_text("")
    own = {"PATH": f"{place}/bin:/usr/bin:/bin", "CALLS": str(place / "calls"), **variables}
    done = subprocess.run(["bash", script, *words], cwd=place, env=own, capture_output=True, text=True, timeout=60)
    calls = [json.loads(line) for line in (place / "calls").read_text().splitlines()]
    return done.returncode, calls, done.stderr


def trained(calls: list[list[str]]) -> list[str]:
    """The arguments of the one training that was started."""
    (words,) = [words for words in calls if words[0] == "srun" and "distgan" in words]
    return words[words.index("train") + 1 :]


@pytest.mark.parametrize("name", [*NUMBERS, "JOB_NODELIST"])
def test_what_slurm_says_is_never_run(place: Path, name: str) -> None:
    scripts = ["check", "evaluate", "train", "sweep"]
    if name in ("RESTART_COUNT", "NTASKS", "NNODES", "ARRAY_JOB_ID"):
        scripts = ["train"]
    elif name == "ARRAY_TASK_ID":
        scripts = ["train", "sweep"]
    (place / "runs.txt").write_text("a.yaml\nb.yaml\n")
    for script in scripts:
        words = ["runs.txt"] if script == "sweep" else ["c.yaml"]
        for code in CODE:
            if name == "JOB_NODELIST" and code == "-1":
                code = "--version"
            variables = {**JOB, **(ARRAY if script in ("sweep", "train") else {}), f"SLURM_{name}": code}
            status, calls, told = run(place, f"slurm/{script}.sbatch", *words, **variables, STAGE="shards")
            assert status == 2, (script, code)
            assert told.startswith(f"SLURM_{name}=") and "\x1b" not in told, told
            assert not calls
            assert not (place / "ran").exists()


def test_what_slurm_says_is_taken(place: Path) -> None:
    status, calls, told = run(place, "slurm/train.sbatch", "c.yaml", "run.dir=a b", **JOB, STAGE="shards")
    assert (status, told) == (0, "")
    assert trained(calls) == ["c.yaml", "run.dir=a b", "data.shards=/tmp/distgan-1234"]
    assert ["scontrol", "show", "hostnames", JOB["SLURM_JOB_NODELIST"]] in calls
    assert ["srun", "--ntasks=5", "--ntasks-per-node=1", "rm", "-rf", "/tmp/distgan-1234"] in calls
    for script in ("check", "evaluate", "generate"):
        assert run(place, f"slurm/{script}.sbatch", "x", **JOB)[0] == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.yaml run.dir=a", ["c.yaml", "run.dir=a"]),
        ("c.yaml 'wandb.notes=a  b' \"x='\"", ["c.yaml", "wandb.notes=a  b", "x='"]),
        ("c.yaml '' ''", ["c.yaml", "", ""]),
        (
            "  c.yaml\t$(touch ran) `touch ran` ; touch ran",
            ["c.yaml", "$(touch", "ran)", "`touch", "ran`", ";", "touch", "ran"],
        ),
        (r"c.yaml a\ b \\", ["c.yaml", "a b", "\\"]),
        ("c.yaml 'unclosed", None),
        ('c.yaml "unclosed run.dir=a', None),
        ("c.yaml it's", None),
        ("", None),
        ("   ", None),
    ],
)
def test_a_line_of_a_sweep_is_taken_whole_or_refused(place: Path, line: str, words: list[str] | None) -> None:
    (place / "runs.txt").write_text(f"a.yaml\n{line}\nz.yaml\n")
    status, calls, told = run(place, "slurm/sweep.sbatch", "runs.txt", **JOB, **ARRAY)
    assert not (place / "ran").exists()
    if words is None:
        assert status == 2 and not calls
        assert "runs.txt" in told and "line 2" in told
    else:
        assert status == 0
        assert trained(calls) == words


@pytest.mark.parametrize("name", ["NODES", "NODE", "GPUS"])
def test_numbers_of_machines_are_numbers(place: Path, name: str) -> None:
    own = {"NODES": "2", "NODE": "0", "GPUS": "08", "MASTER_ADDR": "node1"}
    status, calls, _ = run(place, "launch/multinode.sh", "c.yaml", **own)
    assert status == 0 and calls[0][calls[0].index("--num_processes") + 1] == "16"
    for code in CODE:
        status, calls, told = run(place, "launch/multinode.sh", "c.yaml", **own | {name: code})
        assert (status, calls) == (2, []), code
        assert "not all are numbers" in told and "\x1b" not in told
        assert not (place / "ran").exists()
