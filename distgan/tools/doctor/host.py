"""Check this host: memory between processes, limits, cores, disks."""

import fcntl
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distgan.tools.doctor.finding import OK, WARN, Finding
from distgan.tools.doctor.network import INFINIBAND

FILES = 4096  # that a rank may want to hold open: shards, sockets
SHM_GB = 1.0  # of /dev/shm, through which NCCL moves data between the GPUs of a host
DISK_GB = 10.0
CONTROL_GROUP = "/sys/fs/cgroup"


def shared_memory() -> Iterator[Finding]:
    """Look at /dev/shm."""
    if not os.path.isdir("/dev/shm"):
        yield Finding("/dev/shm", WARN, "is not there", "NCCL and gloo between processes of one host may need it")
        return
    size = shutil.disk_usage("/dev/shm")
    told = f"{size.free / 1e9:.1f} of {size.total / 1e9:.1f} GB free"
    if size.free < SHM_GB * 1e9:
        cure = "start the container with --shm-size=8g or --ipc=host, or remove what is there"
        yield Finding("/dev/shm", WARN, told, cure)
    else:
        yield Finding("/dev/shm", OK, told)


def limits() -> Iterator[Finding]:
    """Look at the limits of open files and locked memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{soft:,} open files, at most {'any number' if hard < 0 else f'{hard:,}'}"
    short = 0 <= soft < FILES
    yield Finding("open files", WARN if short else OK, told, f"ulimit -n {max(FILES, 65536)}" if short else "")
    memory, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.path.isdir(INFINIBAND) and 0 <= memory < 2**30:
        cure = "ulimit -l unlimited, or ask those who run the cluster"
        yield Finding("locked memory", WARN, f"{memory / 2**20:.0f} MiB, little for InfiniBand", cure)


def cpu() -> Iterator[Finding]:
    """Look at cores and memory, and what the control group grants of them."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    threads = os.environ.get("OMP_NUM_THREADS")
    told = f"{usable} of {cores} cores" if usable < cores else f"{cores} cores"
    told += f", {_memory_gb():.0f} GB of memory" if _memory_gb() else ""
    told += f", OMP_NUM_THREADS={threads}" if threads else ""
    yield Finding("cpu", OK, told)
    quota = _quota()
    if quota and quota < usable:
        cure = "ask for more cores (--cpus, --cpus-per-task), or lower OMP_NUM_THREADS and data.decode_threads to that"
        yield Finding("cpu", WARN, f"this container may use {quota:g} cores' time only", cure)


def _memory_gb() -> float:
    try:
        limit = int(Path(CONTROL_GROUP, "memory.max").read_text())
    except (OSError, ValueError):  # no limit, or no such system
        limit = 2**63
    return min(limit, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 1e9


def _quota() -> float:
    """Return the cores' worth of time that the control group grants; 0 for no limit."""
    try:
        quota, period = Path(CONTROL_GROUP, "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max", or no such system
        return 0.0


def disk() -> Iterator[Finding]:
    """Look at the folders that runs and caches write to."""
    from distgan.storage.home import default_cache_dir  # which needs numpy, and that may be missing

    places = {"run folders": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "cache": default_cache_dir()}
    for name, folder in places.items():
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        told = f"{folder}: {free / 1e9:.0f} GB free"
        if not os.access(existing, os.W_OK):
            yield Finding(name, WARN, f"{folder} cannot be written", _elsewhere(name))
        elif free < DISK_GB * 1e9:
            yield Finding(name, WARN, told, f"make room, or {_elsewhere(name)}")
        elif name == "run folders" and (problem := _no_locks(existing)):
            yield Finding(name, WARN, f"{told}, but no file locks ({problem})", "give each run its own run.dir")
        else:
            yield Finding(name, OK, told)


def _elsewhere(name: str) -> str:
    return {
        "run folders": "set run.dir to another place",
        "temporary files": "set TMPDIR to another place",
        "cache": "set DISTGAN_CACHE to another place",
    }[name]


def _no_locks(folder: Path) -> str:
    """Return why files here cannot be locked, which keeps two runs out of one folder; empty where they can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""
