"""What may happen to a run from outside, each with what the run makes of it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import WORKERS, environment, output, ranks, run_ranks, train, wait_for
from range_server import RangeServer
from runs import audit, make_digits, metrics, status, weights, write_config
from shards import numbered_shard

from distgan.data.shard_index import scan

pytestmark = pytest.mark.multi


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", digits)


def lines_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_a_server_that_fails_all_the_time_changes_nothing(tmp_path: Path) -> None:
    """503, answers cut within a member and on a boundary, resets; the samples are those of the files themselves."""
    digits = make_digits(tmp_path / "digits", shard_mb=2)
    own = [str(write_config(tmp_path / "tiny.yaml", digits)), "train.images=240", "data.audit=true"]
    train(1, tmp_path / "log-files", *own, f"run.dir={tmp_path / 'files'}")
    rng = random.Random(5)
    kinds = ["503", "cut 100", "cut 51200", "reset", "short 70000", "500"]
    files = {f"/{path.name}": path.read_bytes() for path in digits.iterdir() if path.suffix in (".tar", ".index")}
    with RangeServer(files) as server:
        server.fail(rng.choice(kinds) if rng.random() < 0.2 else "" for _ in iter(int, 1))
        addresses = ",".join(f"{server.address}{name}" for name in sorted(files) if name.endswith(".tar"))
        train(2, tmp_path / "log-1", *own, f"data.shards=[{addresses}]", f"run.dir={tmp_path / 'served'}")
    seen = [
        {at: Path(sample).parts[-2:] for at, sample in audit(tmp_path / kind).items()} for kind in ("files", "served")
    ]
    assert seen[0] == seen[1]
    assert status(tmp_path / "served")["state"] == "finished"


def test_a_shard_that_is_replaced_under_a_live_run_ends_it(tmp_path: Path) -> None:
    """A server's file gets another size: no sample of the new one is taken for one of the old."""
    shard, other = numbered_shard(range(400)), numbered_shard(range(400, 900))
    config, log = write_config(tmp_path / "tiny.yaml", Path("unused")), tmp_path / "log"
    with RangeServer({"/0.tar": shard, "/0.tar.index": scan(shard, len(shard)).to_bytes()}) as server:
        own = [f"data.shards={server.address}/0.tar", "data.cache_mb=64", "train.images=10M", "sample.every=0"]
        command = ["-m", "distgan", "train", str(config), *own, f"run.dir={tmp_path / 'run'}"]
        server.files["/0.tar"] = other
        assert run_ranks(2, command, log, timeout=60) == [3, 3], output(log, 2)
    assert "0.tar" in status(tmp_path / "run")["reason"]


@pytest.mark.slow
def test_a_slow_rank_slows_the_run_and_no_more(tmp_path: Path, config: Path) -> None:
    """The other waits for it; the lines of metrics tell how much of the time, and the log which rank it is."""
    own, log = [str(config), "train.images=480"], tmp_path / "log"
    train(2, tmp_path / "log-quick", *own, f"run.dir={tmp_path / 'quick'}")
    command = [
        str(WORKERS / "slow_rank.py"),
        "1",
        "0.05",
        "train",
        *own,
        f"run.dir={tmp_path / 'slow'}",
    ]
    assert run_ranks(2, command, log) == [0, 0], output(log, 2)
    assert weights(tmp_path / "slow") == weights(tmp_path / "quick")
    rows = [json.loads(line) for line in (tmp_path / "slow" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["Perf/rank_skew_pct"] for row in rows) > 30
    assert re.search(r"rank 1 on \S+ is slow", output(log))


ALIKE_BUT_FOR = """
import os, sys
from distgan.cli.main import main
from distgan.training import run
rank = os.environ["RANK"]
if "{what}" == "code":
    run.digest_of_code = lambda: "of the code of rank " + rank
sys.exit(main(["train", "{config}", "run.dir={run}", "train.seed=" + ("{what}" == "config") * rank + "0"]))
"""


@pytest.mark.parametrize("what", ["config", pytest.param("code", marks=pytest.mark.slow)])
def test_ranks_that_are_not_alike_are_named(tmp_path: Path, config: Path, what: str) -> None:
    """Before anything is written: each would train on without a word, on its own idea of the run."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["-c", ALIKE_BUT_FOR.format(what=what, config=config, run=run)]
    assert run_ranks(2, command, log) == [5, 5], output(log, 2)
    assert re.search(rf"rank 1 on \S+ has another {what} than rank 0 on \S+ \(.*\): start all ranks alike", output(log))
    assert not run.exists()


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path, config: Path, victim: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["-m", "distgan", "train", str(config), "train.images=10M", f"run.dir={run}"]
    with ranks(2, command, log) as started:
        wait_for(lambda: lines_of(run) >= 2, told=lambda: output(log, 2))
        started[victim].kill()
        assert started[1 - victim].wait(60) == 5, output(log, 2)
    assert status(run)["state"] == "failed"
    assert "another rank is gone" in status(run)["reason"]
    assert "Traceback" not in output(log, 2)


def test_a_killed_wandb_is_told_and_missed_by_nobody(tmp_path: Path, config: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["-m", "distgan", "train", str(config), "train.images=1200", f"run.dir={run}"]
    with ranks(1, command, log, WANDB_MODE="offline") as (process,):
        wait_for(lambda: lines_of(run) >= 1, told=lambda: output(log))
        found = [pid for pid in children(process.pid) if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert found, "W&B has no process to kill"
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(90) == 0, output(log)
    assert output(log).count("wandb: ") == 2  # where it is, and that it failed
    assert "continuing without it" in output(log)
    assert status(run)["state"] == "finished"


def children(pid: int) -> list[int]:
    """All processes below one."""
    found = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [*found, *(below for child in found for below in children(child))]


CONSOLE_CLOSES = """
import os, sys, threading
from distgan.cli.main import main
def read_and_close():
    os.read(end, 1)
    os.close(end)
end, console = os.pipe()
sys.stdout = os.fdopen(console, "w", buffering=1)
threading.Thread(target=read_and_close, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


def test_a_console_that_closes_is_not_missed(tmp_path: Path, config: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["-c", CONSOLE_CLOSES, "train", str(config), "train.images=240", f"run.dir={run}"]
    assert run_ranks(1, command, log, 60) == [0], output(log)
    assert Path(f"{log}.0").read_text() == ""  # its stderr
    assert status(run)["state"] == "finished"
    assert "finished at 240 images" in (run / "log.txt").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, as root")
@pytest.mark.parametrize("when", ["at the start", pytest.param("later", marks=pytest.mark.slow)])
def test_a_run_folder_that_is_read_only(tmp_path: Path, config: Path, when: str) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    command = ["-m", "distgan", "train", str(config), "train.images=10M", f"run.dir={disk / 'run'}"]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    try:
        if when == "at the start":
            (disk / "run").mkdir()
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            assert run_ranks(1, command, log, 60) == [5]
        else:
            with ranks(2, command, log) as started:
                wait_for(lambda: lines_of(disk / "run") >= 3, told=lambda: output(log, 2))
                # As a file system does that found an error. (Files open for writing, as log.txt is, stay so.)
                subprocess.run(["mount", "--bind", disk, disk], check=True)
                subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
                assert [process.wait(60) for process in started] == [5, 5], output(log, 2)
    finally:
        while subprocess.run(["umount", "--lazy", disk], check=False, capture_output=True).returncode == 0:
            pass  # it may be mounted twice
    assert "Read-only file system" in output(log)
    assert "Traceback" not in output(log)


@pytest.mark.parametrize("limit", [14, pytest.param(24, marks=pytest.mark.slow)])
def test_too_few_file_descriptors_are_told_or_do(tmp_path: Path, config: Path, limit: int) -> None:
    """Never a hang, never a traceback; and what was saved is good."""
    run, log = tmp_path / "run", tmp_path / "log"
    script = f"ulimit -n {limit}; exec {sys.executable} -m distgan train {config} train.images=120 run.dir={run}"
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, timeout=90)
    assert done.returncode in (0, 3, 5), done.stderr
    if done.returncode:
        assert "Too many open files" in done.stderr
        assert "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr
    train(1, log, str(config), "train.images=120", f"run.dir={run}")


@pytest.mark.slow
def test_a_clock_that_runs_backwards_changes_nothing(tmp_path: Path, config: Path) -> None:
    """Wall time is only written down: neither the order of checkpoints nor a deadline is a matter of it."""
    own, log = [str(config), "data.audit=true"], tmp_path / "log"
    train(1, log, *own, "train.images=480", f"run.dir={tmp_path / 'whole'}")
    broken = tmp_path / "broken"
    for images in ("240", "480"):
        command = [str(WORKERS / "backward_clock.py"), "train", *own, f"train.images={images}"]
        assert run_ranks(1, [*command, f"run.dir={broken}"], log) == [0], output(log)
        for age, path in enumerate(sorted((broken / "checkpoints").glob("step-*"))):
            os.utime(path, (10**9 - age, 10**9 - age))  # the newest looks oldest
    assert weights(broken) == weights(tmp_path / "whole")
    assert metrics(broken) == metrics(tmp_path / "whole")
    assert audit(broken) == audit(tmp_path / "whole")


def test_what_a_run_writes_holds_no_secret_and_obeys_the_umask(tmp_path: Path, digits: Path) -> None:
    config, run, log = write_config(tmp_path / "tiny.yaml", Path("unused")), tmp_path / "run", tmp_path / "log"
    files = {f"/{path.name}": path.read_bytes() for path in digits.iterdir() if path.suffix in (".tar", ".index")}
    before = os.umask(0o027)
    try:
        with RangeServer(files) as server:
            place = server.address.replace("//", "//user:SECRET@")
            shards = ",".join(f"{place}{name}?token=SECRET" for name in sorted(files) if name.endswith(".tar"))
            own = [str(config), f"data.shards=[{shards}]", f"run.dir={run}"]
            train(1, log, *own, "train.images=240", WANDB_MODE="offline")
    finally:
        os.umask(before)
    assert "SECRET" not in output(log)
    for path in run.rglob("*"):
        assert path.stat().st_mode & 0o027 == 0, path
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path
