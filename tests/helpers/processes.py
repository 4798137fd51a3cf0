"""Start ranks of `distgan` as processes of their own, as srun or a launcher would, and clean up after them.

They are forked by a server that has imported torch already, which saves the seconds that each would take for it.
`real=True` starts them with `python COMMAND`; what launchers and users start is tested so in test_launch.py,
test_slurm.py and test_readme.py.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS, WORKERS = ROOT / "tests" / "helpers", ROOT / "tests" / "workers"
PYTHONPATH = os.pathsep.join(map(str, (ROOT, HELPERS, WORKERS)))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what a launcher would set."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "ACCELERATE_", "WANDB_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, "WANDB_MODE": "disabled"} | more


class Forked:
    """A rank that the server forked, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile()
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"rank with process id {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode


Process = subprocess.Popen | Forked


SHARED_SERVER = "PYTEST_FORK_SERVER"  # the variable that tells xdist's workers which server is theirs


def start_fork_server() -> str:
    """Start a server, which ends with this process; returns its socket, which is there once the server has begun."""
    folder = tempfile.mkdtemp(prefix="ranks-")
    address = f"{folder}/socket"
    with open(f"{folder}/log", "wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), address],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return address


@functools.cache
def fork_server() -> str:
    """The socket of the server of all workers, which conftest.py starts, or else of this process's own."""
    address = os.environ.get(SHARED_SERVER) or start_fork_server()
    log = Path(address).with_name("log")
    wait_for(lambda: os.path.exists(address) or "Traceback" in log.read_text(), 120, log.read_text)
    assert os.path.exists(address), log.read_text()
    return address


def start(command: Sequence[str], own: dict[str, str], log: str, real: bool) -> Process:
    """One rank; its output is added to `log`."""
    if real or sys.platform != "linux":  # elsewhere a fork of what has loaded system libraries may hang
        with open(log, "ab") as output:
            return subprocess.Popen(
                [sys.executable, *command],
                env=own,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    open(log, "ab").close()  # there from now on, though the rank itself opens it later
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(fork_server())
    request = {"command": [*map(str, command)], "environment": own, "log": os.path.abspath(log), "cwd": os.getcwd()}
    os.umask(umask := os.umask(0o077))  # which can only be read by setting it
    request["umask"] = umask
    connection.sendall(json.dumps(request).encode() + b"\n")
    return Forked(connection)


@contextlib.contextmanager
def ranks(
    world: int, command: Sequence[str], log: Path, *, real: bool = False, **variables: str
) -> Iterator[list[Process]]:
    """`world` processes of one command, each told its rank; killed at the end. Their output goes to `log`.<rank>."""
    started, port = [], free_port()
    try:
        for rank in range(world):
            own = {}
            if world > 1:
                own = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "LOCAL_WORLD_SIZE": str(world),
                }
                own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            started.append(start(command, environment(**own, **variables), f"{log}.{rank}", real))
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # one that has only now been forked leads no group yet
            process.wait()


def run_ranks(world: int, command: Sequence[str], log: Path, timeout: float = 120, **variables: str) -> list[int]:
    """Run the ranks to their end; their exit codes."""
    with ranks(world, command, log, **variables) as started:
        deadline = time.monotonic() + timeout
        return [process.wait(max(1, deadline - time.monotonic())) for process in started]


def train(world: int, log: Path, *arguments: str, **variables: str) -> None:
    """`distgan train` on so many ranks, which must end well."""
    codes = run_ranks(world, ["-m", "distgan", "train", *arguments], log, **variables)
    assert codes == [0] * world, output(log, world)


def output(log: Path, world: int = 1) -> str:
    """What the ranks printed."""
    return "\n".join(f"--- rank {rank}\n{Path(f'{log}.{rank}').read_text()}" for rank in range(world))


def wait_for(condition: Callable[[], object], timeout: float = 90, told: Callable[[], str] = str) -> None:
    """Wait until something holds; `told` says more where it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened in {timeout:g} s {told()}"
        time.sleep(0.02)
