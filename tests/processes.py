"""Start ranks of `distgan` as real processes, as srun or a launcher would, and clean up after them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what a launcher would set."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "ACCELERATE_", "WANDB_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"} | more


@contextlib.contextmanager
def ranks(world: int, command: Sequence[str], log: Path, **variables: str) -> Iterator[list[subprocess.Popen]]:
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
            with open(f"{log}.{rank}", "ab") as output:
                started.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env=environment(**own, **variables),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
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
