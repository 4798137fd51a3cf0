"""The scripts in launch/: signals reach the ranks, and no rank outlives its launcher.

All of it with a default_config.yaml in the user's home that says something else in every line.
"""

import os
import signal
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
        self, script: str, config: Path, run: Path, hangup: signal.Handlers = signal.SIG_DFL, **variables: str
    ):
        self.run = run
        home = config.parent / "home"
        (home / "accelerate").mkdir(parents=True, exist_ok=True)
        (home / "accelerate" / "default_config.yaml").write_text(DEFAULT_CONFIG)
        more = {"PYTHON": sys.executable, "ACCELERATE_USE_CPU": "true", "HF_HOME": str(home), **variables}
        command = [str(ROOT / "launch" / script), str(config), f"run.dir={run}", "train.images=10M"]
        before = signal.signal(signal.SIGHUP, hangup)  # inherited
        self.process = subprocess.Popen(command, env=environment(**more), start_new_session=True)
        signal.signal(signal.SIGHUP, before)

    def ranks(self) -> list[int]:
        found = subprocess.run(["pgrep", "-f", f"distgan train .*run.dir={self.run}"], capture_output=True, text=True)
        own = (int(line) for line in found.stdout.split())
        return [process for process in own if b"accelerate.commands.launch" not in _command(process)]

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
        return b"accelerate.commands.launch"  # gone


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
        ("local.sh", signal.SIGINT),
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
    launched[0].process.send_signal(number)
    launched[0].wait_until_it_is_gone()
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


def test_ranks_whose_launcher_was_killed_save_and_leave(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    launched[0].process.kill()
    launched[0].wait_until_it_is_gone()
    assert status(tmp_path / "run")["state"] == "preempted"


def test_a_signal_to_one_rank_stops_all(launched: list[Launched], config: Path, tmp_path: Path) -> None:
    launched.append(Launched("cpu.sh", config, tmp_path / "run"))
    launched[0].wait_until_it_trains()
    os.kill(launched[0].ranks()[-1], signal.SIGTERM)
    launched[0].wait_until_it_is_gone()
    assert status(tmp_path / "run")["state"] == "preempted"


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
    assert status(tmp_path / "run")["state"] == "preempted"


@pytest.mark.parametrize(("mistake", "told"), [("train.bach=8", "Did you mean: 'batch'"), ("train.batch=7", "2 rank")])
def test_a_mistake_is_the_last_word_of_a_launch(tmp_path: Path, mistake: str, told: str) -> None:
    config = write_config(tmp_path / "a.yaml", tmp_path)
    command = ["bash", str(ROOT / "launch" / "cpu.sh"), str(config), mistake]
    own = environment(PYTHON=sys.executable)
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
