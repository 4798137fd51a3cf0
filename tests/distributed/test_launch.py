"""The scripts in launch/: signals reach the ranks, their exit codes arrive, and no rank outlives its launcher.

All of it with a default_config.yaml in the user's home that says something else in every line.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, environment, free_port, wait_for
from runs import make_digits, status, write_config

pytestmark = [pytest.mark.multi, pytest.mark.timeout(180)]


DEFAULT_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 2
num_processes: 16
machine_rank: 1
gpu_ids: '3'
main_process_ip: 10.9.8.7
main_process_port: 4321
rdzv_backend: c10d
same_network: false
mixed_precision: bf16
dynamo_config: {dynamo_backend: INDUCTOR}
fsdp_config: {fsdp_version: 2}
debug: true
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder / "tiny.yaml", make_digits(folder / "digits"))


class Launched:
    """A script and the ranks that it started."""

    def __init__(
        self,
        script: str,
        config: Path,
        run: Path,
        hangup: signal.Handlers = signal.SIG_DFL,
        override: str = "train.images=10M",
        **variables: str,
    ):
        self.run = run
        home = config.parent / "home"
        (home / "accelerate").mkdir(parents=True, exist_ok=True)
        (home / "accelerate" / "default_config.yaml").write_text(DEFAULT_CONFIG)
        more = {"PYTHON": sys.executable, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(home), **variables}
        command = [str(ROOT / "launch" / script), str(config), f"run.dir={run}", override]
        before = signal.signal(signal.SIGHUP, hangup)  # inherited
        self.log = run.with_name(f"{run.name}.{more.get('NODE', '')}.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(**more), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        signal.signal(signal.SIGHUP, before)

    def ranks(self) -> list[int]:
        found = subprocess.run(["pgrep", "-f", f"distgan train .*run.dir={self.run}"], capture_output=True, text=True)
        own = (int(line) for line in found.stdout.split())
        return [process for process in own if b"distgan.distributed.launch" not in _command(process)]

    def wait_until_it_trains(self) -> None:
        path = self.run / "metrics.jsonl"
        wait_for(lambda: path.exists() and path.stat().st_size > 0)

    def wait_until_it_is_gone(self) -> None:
        wait_for(lambda: not self.ranks(), 60)
        self.process.wait(30)

    def kill(self) -> None:
        for process in [*self.ranks(), self.process.pid]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b"distgan.distributed.launch"  # gone


def _rank(process: int) -> int:
    variables = Path(f"/proc/{process}/environ").read_text().split("\0")
    return next(int(line.removeprefix("RANK=")) for line in variables if line.startswith("RANK="))


@pytest.fixture
def launched() -> Iterator[list[Launched]]:
    started: list[Launched] = []
    yield started
    for launch in started:
        launch.kill()


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("cpu.sh", signal.SIGTERM),
        pytest.param("local.sh", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("cpu.sh", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("cpu.sh", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("cpu.sh", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param("local.sh", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("local.sh", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("local.sh", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_launcher_saves(
    script: str, number: signal.Signals, launched: list[Launched], config: Path, tmp_path: Path
) -> None:
    launched.append(Launched(script, config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    os.killpg(launched[0].process.pid, number)  # as a terminal does
    launched[0].wait_until_it_is_gone()
    told = launched[0].log.read_text()
    assert launched[0].process.returncode == (130 if number == signal.SIGINT else 75), told
    assert f"distgan: {number.name}: stops after this step" in told
    assert "Traceback" not in told and "torch" not in told
    found = status(tmp_path / "run")
    assert (found["state"], found["world"]) == ("preempted", 2 if script == "cpu.sh" else 1)
    assert (tmp_path / "run" / "checkpoints" / found["checkpoint"] / "manifest.json").exists()


@pytest.mark.slow
def test_under_nohup_a_terminal_may_close(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run", signal.SIG_IGN))
    launched[0].wait_until_it_trains()
    for process in [launched[0].process.pid, *launched[0].ranks()]:
        os.kill(process, signal.SIGHUP)
    so_far = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").stat().st_size > 2 * so_far)
    assert len(launched[0].ranks()) == 2


@pytest.mark.slow
def test_ranks_whose_launcher_was_killed_save_and_leave(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    launched[0].process.kill()
    launched[0].wait_until_it_is_gone()
    assert status(tmp_path / "run")["state"] == "preempted"


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    os.kill(launched[0].ranks()[-1], signal.SIGTERM)
    launched[0].wait_until_it_is_gone()
    assert launched[0].process.returncode == 75
    assert status(tmp_path / "run")["state"] == "preempted"


@pytest.mark.slow
def test_every_ctrl_c_reaches_the_ranks(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    """While rank 1 is stopped, nothing is saved: the first two are told, and the third one ends the run."""
    launched.append(Launched("cpu.sh", config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    stopped = max(launched[0].ranks(), key=_rank)
    os.kill(stopped, signal.SIGSTOP)
    for told in ("stops after this step", "a third Ctrl-C ends at once", "the last checkpoint is good"):
        os.killpg(launched[0].process.pid, signal.SIGINT)
        wait_for(lambda told=told: told in launched[0].log.read_text())
    os.kill(stopped, signal.SIGCONT)
    launched[0].wait_until_it_is_gone()
    assert launched[0].process.returncode == 130
    assert "Traceback" not in launched[0].log.read_text()
    assert status(tmp_path / "run")["state"] == "failed"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
)
def test_a_launcher_that_has_started_no_rank_leaves_at_once(
    launched: list[Launched], config: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """As it waits for the other machine, which happens in C."""
    meeting = {"NODES": "2", "GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    launched.append(Launched("multinode.sh", config, tmp_path / "run", NODE="1", **meeting))
    wait_for(lambda: b"distgan.distributed.launch" in _command(launched[0].process.pid))
    wait_for(lambda: len(list(Path(f"/proc/{launched[0].process.pid}/task").iterdir())) > 1)  # it listens
    launched[0].process.send_signal(number)
    assert launched[0].process.wait(30) == code
    assert launched[0].log.read_text() == f"\ndistgan: {number.name}: no rank runs, nothing to save\n"


def test_a_failed_run_ends_with_its_own_code_and_line(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run", override="data.shards=nowhere"))
    assert launched[0].process.wait(90) == 3
    lines = launched[0].log.read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("distgan train: data.shards: no shard matches 'nowhere'")


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_in_a_line(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        meeting = {"NODES": "2", "GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        launched.append(Launched("multinode.sh", config, tmp_path / "run", NODE="0", **meeting))
        assert launched[0].process.wait(90) == 5
    (line,) = launched[0].log.read_text().split("\n")[1:-1]
    assert line.startswith("distgan: the launchers of this run could not meet: ")
    assert line.endswith("(set another MASTER_PORT, the same on all machines)")


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    os.kill(max(launched[0].ranks(), key=_rank), signal.SIGKILL)
    launched[0].wait_until_it_is_gone()
    told = launched[0].log.read_text()
    assert launched[0].process.returncode == 137, told
    assert "distgan: rank 1 was ended by SIGKILL" in told and "Traceback" not in told


@pytest.mark.slow
def test_two_machines_are_one_run_and_stop_together(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    """launch/multinode.sh twice on loopback; a signal to one of the two is enough."""
    meeting = {"NODES": "2", "GPUS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for node in "01":
        launched.append(Launched("multinode.sh", config, tmp_path / "run", NODE=node, **meeting))
    launched[0].wait_until_it_trains()
    assert status(tmp_path / "run")["world"] == 2
    launched[1].process.terminate()
    for launch in launched:
        launch.wait_until_it_is_gone()
        assert launch.process.returncode == 75
    assert status(tmp_path / "run")["state"] == "preempted"


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("train.batch=7", "2 rank"),
        pytest.param("train.bach=8", "Did you mean: 'batch'", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_the_last_word_of_a_launch(tmp_path: Path, mistake: str, told: str) -> None:
    config = write_config(tmp_path / "a.yaml", tmp_path)
    command = ["bash", str(ROOT / "launch" / "cpu.sh"), str(config), mistake]
    own = environment(PYTHON=sys.executable)
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
