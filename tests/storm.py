"""A run that is killed at random moments, again and again, against one that nobody disturbs.

    python tests/storm.py [--kills 30] [--ranks 2] [--seed 0] [--tmpfs]

All ranks get SIGKILL together: while they start, load, train, draw samples or write a checkpoint, each of which the
tiny run does all the time. With --tmpfs (as root) the run lies on a small disk of its own, which is full at every third
blow.
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

from processes import output, ranks, train
from runs import audit, make_digits, metrics, weights, write_config

MOMENTS_SEC = 14.0  # a start takes about half of it


def storm(folder: Path, kills: int, world: int, seed: int, disk: Path | None = None, images: int = 6000) -> Counter:
    """Raises AssertionError where anything is lost; returns how many blows of which kind the run survived."""
    config = write_config(folder / "tiny.yaml", make_digits(folder / "digits"))
    own = [f"train.images={images}", "data.audit=true", "checkpoint.keep_last=2"]
    own += ["checkpoint.every=120", "sample.every=240"]
    whole, broken = folder / "whole", (disk or folder) / "broken"
    train(world, folder / "log-whole", str(config), *own, f"run.dir={whole}")

    rng, blows, log = random.Random(seed), Counter(), folder / "log-broken"
    command = ["-m", "distgan", "train", str(config), *own, f"run.dir={broken}"]
    for number in range(kills):
        fills = disk is not None and number % 3 == 2
        with ranks(world, command, log) as started, filled(disk if fills else None, rng.uniform(4, MOMENTS_SEC)):
            if fills:
                codes = [process.wait(90) for process in started]
                blows["disk full" if any(codes) else "came too late"] += 1
                continue
            time.sleep(rng.uniform(0, MOMENTS_SEC))
            alive = [process.poll() is None for process in started]
            for process in started:
                process.send_signal(signal.SIGKILL)
            blows["killed" if all(alive) else "came too late"] += 1
    train(world, log, *command[3:], timeout=300)

    assert "Traceback" not in output(log, world)
    assert weights(broken) == weights(whole)
    assert metrics(broken) == metrics(whole)
    assert audit(broken) == audit(whole)
    assert sorted(audit(whole)) == list(range(images))
    return blows


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
def tmpfs(folder: Path, size: str = "4m") -> Iterator[Path]:
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
