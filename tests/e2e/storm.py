"""A run that is killed at random moments, again and again, against one that nobody disturbs.

    python tests/e2e/storm.py [--kills 30] [--ranks 2] [--seed 0] [--tmpfs]

All ranks get SIGKILL together: while they start, load, train, draw samples or write a checkpoint, each of which the
tiny run does all the time. The run does not end before the last blow, and the moment of each is drawn from the time
that a first run took to its fourth checkpoint: so on any machine some fall before training has begun and some after.
With --tmpfs (as root) the run lies on a small disk of its own, which is full at every third blow.
In the end every weight, optimizer moment and metric must be the same bit for bit, and every position consumed once.
"""

import argparse
import contextlib
import errno
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from processes import output, ranks, train, wait_for
from runs import audit, make_digits, metrics, weights, write_config

ENDLESS = "train.images=100M"  # while blows fall, so that each of them meets a run that is alive


def storm(folder: Path, kills: int, world: int, seed: int, disk: Path | None = None) -> Counter:
    """Raises AssertionError where anything is lost; returns how many blows of which kind the run survived."""
    config = write_config(folder / "tiny.yaml", make_digits(folder / "digits"))
    own = ["data.audit=true", "checkpoint.keep_last=2", "checkpoint.every=120", "sample.every=240"]
    whole, broken = folder / "whole", (disk or folder) / "broken"
    command = ["-m", "distgan", "train", str(config), *own]
    longest = 1.5 * seconds_to_a_checkpoint(folder / "measured", command, world)

    rng, blows, log = random.Random(seed), Counter(), folder / "log-broken"
    for number in range(kills):
        fills = disk is not None and number % 3 == 2
        with (
            ranks(world, [*command, ENDLESS, f"run.dir={broken}"], log) as started,
            filled(disk if fills else None, rng.uniform(0, longest)),
        ):
            if fills:
                codes = [process.wait(90) for process in started]
                blows["disk full" if any(codes) else "came too late"] += 1
                continue
            time.sleep(rng.uniform(0, longest))
            alive = [process.poll() is None for process in started]
            for process in started:
                process.send_signal(signal.SIGKILL)
            blows["killed" if all(alive) else "came too late"] += 1
    # On from where the blows have left it, and the same from the beginning without them.
    reached = max((int(path.name[5:]) for path in (broken / "checkpoints").glob("step-*")), default=0)
    images = reached + 600
    for run, told in ((broken, log), (whole, folder / "log-whole")):
        train(world, told, *command[3:], f"train.images={images}", f"run.dir={run}", timeout=600)

    assert "Traceback" not in output(log, world)
    assert weights(broken) == weights(whole)
    assert metrics(broken) == metrics(whole)
    assert audit(broken) == audit(whole)
    assert sorted(audit(whole)) == list(range(images))
    return blows


def seconds_to_a_checkpoint(run: Path, command: list[str], world: int) -> float:
    """From the start of a run to its fourth checkpoint, on this machine as it is now."""
    log = run.with_name("log-measured")
    began = time.monotonic()
    with ranks(world, [*command, ENDLESS, f"run.dir={run}"], log):
        wait_for((run / "checkpoints" / "step-000000000480").exists, told=lambda: output(log, world))
        return time.monotonic() - began


@contextlib.contextmanager
def filled(disk: Path | None, after_sec: float) -> Iterator[None]:
    """Fill a disk to the last byte some time from now; free it again at the end."""
    if disk is None:
        yield
        return
    time.sleep(after_sec)
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1024)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    yield
    (disk / "filler").unlink()


@contextlib.contextmanager
def tmpfs(folder: Path, size: str = "16m") -> Iterator[Path]:
    """A small disk; needs root."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tmpfs", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tmpfs(folder) if options.tmpfs else contextlib.nullcontext() as disk:
            blows = storm(folder, options.kills, options.ranks, options.seed, disk)
    print(f"survived, and the same to the last bit: {dict(blows)}")
