"""The folder of a run: its files, and what a resumed run keeps of them."""

import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from distgan.errors import OTHERS_END, DataError, DistganError, MachineError
from distgan.storage.atomic import replace_file, replacing, sweep
from distgan.storage.home import user_path
from distgan.storage.printable import public_line
from distgan.storage.untrusted import (
    MAX_LINES_BYTES,
    MAX_SOURCE_BYTES,
    open_to_append,
    parse,
    read,
    read_json,
    read_lines,
)
from distgan.storage.urls import public

log = logging.getLogger("distgan")

PACKAGES = ("torch", "accelerate", "webdataset", "wandb", "omegaconf", "numpy", "pillow", "simplejpeg", "safetensors")
PROGRESS = ("images", "step", "total_images", "checkpoint")  # of status.json: kept when a later start fails


class RunDir:
    """Paths and small files of a run. Only rank 0 writes, but for `logs/` and `audit/`.

    config.yaml       the whole config, which `distgan train` takes again
    environment.json  versions, machine and command line of each start
    init.json         with init.from, the weights that the run started from, with their sha256
    status.json       what state the run is in, replaced as a whole
    log.txt           what the console showed
    logs/             what ranks other than 0 have to say
    metrics.jsonl     a line per tick
    evals.jsonl       a line per evaluation, and per measure of restored images
    quarantine.jsonl  a line per corrupt sample, where there are any
    samples/          reals.png, fakes-<kimg>.png
    checkpoints/      see `checkpoint`
    plugins/          the source of the run's plugins, with their sha256 in plugins.json
    audit/            with data.audit, a line per consumed sample of each rank
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.samples, self.checkpoints = self.path / "samples", self.path / "checkpoints"
        self.metrics, self.evals = self.path / "metrics.jsonl", self.path / "evals.jsonl"
        self._lock: io.TextIOWrapper | None = None  # held until the process ends
        self.start: dict[str, object] = {}  # this one's environment, once the folder is open

    def open(self, command: list[str]) -> None:
        """Create the folder, keep other live runs out of it, and record the environment."""
        try:
            for folder in (self.path, self.samples, self.checkpoints, self.path / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = open_to_append(self.path / ".lock")
            self._take_lock(self._lock)
            for folder in (self.path, self.samples, self.checkpoints):
                sweep(folder, older_sec=60)  # of other hosts too: none of them trains here now
            self._note_environment(command)
        except (FileExistsError, NotADirectoryError) as error:
            file = file_in_the_way(Path(error.filename)) or error.filename
            raise MachineError(f"run.dir={self.path}: {file} is a file: choose another run.dir") from None
        except OSError as error:
            raise MachineError(f"run.dir={self.path}: {error.strerror}") from None

    def _take_lock(self, lock: io.TextIOWrapper) -> None:
        """Lock the folder and write who holds it; refuses a folder that a live run holds."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise MachineError(
                f"run.dir={self.path} is in use by a live run ({lock.read().strip() or 'unknown'}): "
                "wait for it, stop it, or choose another run.dir"
            ) from None
        except OSError as error:
            log.warning(f"run.dir={self.path} has no locks ({error.strerror}): make sure that no other run uses it")
        lock.seek(0)
        lock.truncate()
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()

    def close(self) -> None:
        """Unlock the folder for another run."""
        if self._lock is not None:
            self._lock.close()

    def write_config(self, text: str) -> None:
        """Replace config.yaml."""
        replace_file(self.path / "config.yaml", text)

    def keep_plugins(self, plugins: Mapping[str, object], files: Sequence[tuple[str, bytes]]) -> None:
        """Write the source of the run's plugins, and what there is to know of them.

        Former sources stay, each in a folder that is called by the beginning of its sha256.

        Args:
            plugins: What `plugins.record` returns.
            files: Name and content of each file.
        """
        folder = self.path / "plugins"
        if not files and not folder.exists():
            return
        try:
            for name, content in files:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and (old := read(path, MAX_SOURCE_BYTES, follow_links=False)) != content:
                    former = folder / hashlib.sha256(old).hexdigest()[:12] / name
                    former.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(former)
                with replacing(path, sync=True) as part:
                    part.write_bytes(content)
            replace_file(folder / "plugins.json", json.dumps(plugins, indent=1) + "\n")
        except OSError as error:
            raise MachineError(f"{folder}: {error.strerror}") from None

    def record_changes(self, changes: dict[str, tuple]) -> None:
        """Add to this start's entry of environment.json what settings are others than before, as key -> [old, new]."""
        path = self.path / "environment.json"
        starts = _starts(path)
        self.start["changes"] = {key: list(values) for key, values in changes.items()}
        replace_file(path, json.dumps({"starts": [*starts[:-1], self.start]}, indent=1) + "\n")

    def write_status(self, state: str, **values: object) -> None:
        """Replace status.json: `state` is running, preempted, finished or failed."""
        record = {"state": state, **values, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        replace_file(self.path / "status.json", json.dumps(record, indent=1) + "\n")

    def record_end(self, state: str, reason: str, world: int) -> None:
        """Write to status.json how a start ended, and keep its progress there, which may be of an earlier start."""
        progress = {k: v for k, v in self.read_status().items() if k in PROGRESS}
        self.write_status(state, **progress, reason=reason, world=world)

    def record_failure(self, error: DistganError, rank: int, world: int) -> None:
        """Write the cause to status.json, and keep its progress there. A rank that ends because another one ended keeps
        the other's cause."""
        if rank not in (0, error.rank):
            return
        if OTHERS_END in str(error) and self.read_status().get("state") == "failed":
            return
        try:
            self.record_end("failed", public_line(f"{type(error).__name__}: {error}"), world)
        except OSError as problem:
            log.warning(f"{self.path}: status.json could not be written: {problem.strerror}")

    def read_status(self) -> dict:
        """Return what status.json holds; nothing where it cannot be read."""
        try:
            return parse(dict[str, object], read_json(self.path / "status.json", follow_links=False), "status.json")
        except (OSError, DataError):
            return {}

    def add_metrics(self, row: dict[str, float]) -> None:
        """Append a line to metrics.jsonl."""
        with open_to_append(self.metrics) as file:
            file.write(json.dumps(row) + "\n")

    def add_evaluation(self, row: Mapping[str, float | None]) -> None:
        """Append a line to evals.jsonl."""
        with open_to_append(self.evals) as file:
            file.write(json.dumps(row) + "\n")

    def evaluations(self) -> list[dict]:
        """Return the rows of evals.jsonl that can be read."""
        lines = [line for line in _lines(self.evals) if _number(line, "Progress/images") >= 0]
        return [json.loads(line) for line in lines]

    def record_corrupt(self, samples: list[dict[str, str]]) -> list[dict[str, str]]:
        """Add corrupt samples to quarantine.jsonl; returns those that were not in it yet."""
        path = self.path / "quarantine.jsonl"
        known = set(_lines(path)) if samples else set()
        new = [row for row in samples if json.dumps(row) + "\n" not in known]
        if new:
            with open_to_append(path) as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
        return new

    def truncate_after(self, images: int) -> int:
        """Remove what was written after `images`, since a resumed run writes it again.

        Lines of metrics and evaluations that are taken back are kept in metrics.orphan-<images>.jsonl and
        evals.orphan-<images>.jsonl. Returns the last image count of any line of metrics ever written.
        """
        files = [*self.path.glob("metrics.orphan-*.jsonl"), self.metrics]
        last = max([0, *(_number(line, "Progress/images") for path in files for line in _lines(path))])
        for path in (self.metrics, self.evals):
            kept: list[str] = []
            orphans: list[str] = []
            for line in _lines(path):
                (kept if 0 <= _number(line, "Progress/images") <= images else orphans).append(line)
            if orphans:
                with open_to_append(self.path / f"{path.stem}.orphan-{images}.jsonl") as file:
                    file.writelines(orphans)
                replace_file(path, "".join(kept))
        for path in (self.path / "audit").glob("rank*.jsonl"):
            lines = _lines(path, max_bytes=2**40)  # a line for each image
            good = [line for line in lines if 0 <= _number(line, "position") < images]
            if len(good) < len(lines):
                replace_file(path, "".join(good))
        return last

    def _note_environment(self, command: list[str]) -> None:
        """Add this start to environment.json."""
        path = self.path / "environment.json"
        starts = _starts(path)
        names = (
            "SLURM_JOB_ID",
            "SLURM_ARRAY_TASK_ID",
            "SLURM_RESTART_COUNT",
            "SLURM_JOB_NODELIST",
            "CUDA_VISIBLE_DEVICES",
        )
        self.start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(command),
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "git": git_state(),
            "variables": {name: os.environ[name] for name in names if name in os.environ},
        }
        replace_file(path, json.dumps({"starts": [*starts, self.start]}, indent=1) + "\n")


def file_in_the_way(folder: Path) -> Path | None:
    """Return the file that keeps a folder from being made: one of its name, or of a folder around it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return None if existing.is_dir() else existing


def _starts(path: Path) -> list[object]:
    """Return what environment.json holds of earlier starts; none where it cannot be read."""
    try:
        return parse(dict[str, list[object]], read_json(path, follow_links=False), path).get("starts", [])
    except (OSError, DataError):
        return []


def _lines(path: Path, max_bytes: int = MAX_LINES_BYTES) -> list[str]:
    """Read the lines of a file, each with its end; none where there is no file."""
    try:
        return [line.decode(errors="replace") for line in read_lines(path, max_bytes=max_bytes)]
    except FileNotFoundError:
        return []


def _number(line: str, name: str) -> int:
    """Return a number of a JSON line; -1 for a line that was cut by a crash, or holds none."""
    try:
        value = json.loads(line)[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return value if isinstance(value, int) and 0 <= value < 2**53 else -1


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # W&B is not needed, and a copied package may lack its metadata
        return None


def git_state() -> str:
    """Return the commit of the code that runs, with a + where it was changed; empty outside of a checkout."""
    folder = Path(__file__).parent.parent
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def command_line() -> list[str]:
    """Return the command that started this process, without secrets of addresses."""
    return [public(word) for word in (os.path.basename(sys.executable), *sys.orig_argv[1:])]
