"""Check W&B and SLURM."""

import importlib.util
import netrc
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from distgan.storage.home import user_path
from distgan.tools.doctor.finding import OK, WARN, Finding
from distgan.tracking.wandb_mode import mode_of_environment

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
KEY_LENGTH, SHORT = 40, "WANDB_API_KEY has fewer than 40 characters"
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # W&B's own, in versions of its client


def wandb() -> Iterator[Finding]:
    """Look at how W&B would run."""
    mode, told = wandb_mode("auto")
    if mode == "none":
        yield Finding("wandb", WARN, told, "pip install wandb; metrics.jsonl is written all the same")
    elif SHORT in told:
        yield Finding("wandb", WARN, told, "wandb login, or the whole key in WANDB_API_KEY")
    elif mode == "offline":
        yield Finding(
            "wandb", OK, f"{told}; `wandb login` brings runs online, a run's log names how to upload it later"
        )
    elif mode not in MODES:
        yield Finding("wandb", WARN, f"{told}: no such mode", f"WANDB_MODE is one of {', '.join(MODES)}")
    else:
        yield Finding("wandb", OK, told)


def wandb_mode(wanted: str) -> tuple[str, str]:
    """Return how W&B would run, and why, without importing it or asking the network.

    Args:
        wanted: wandb.mode of a config.

    Returns:
        online, offline, disabled, whatever else WANDB_MODE says, or none where wandb is not installed; and a line.
    """
    asked, variable = mode_of_environment(os.environ)
    mode = asked or wanted
    if mode != "disabled" and importlib.util.find_spec("wandb") is None:
        return "none", "not installed: metrics go to metrics.jsonl alone"
    if asked:
        return asked, f"{asked} (from {variable})"
    if wanted != "auto":
        return wanted, wanted
    if 0 < len(os.environ.get("WANDB_API_KEY", "")) < KEY_LENGTH:  # which its client refuses
        return "offline", f"offline ({SHORT})"
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    where = "from WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else _netrc((own,) if own else HOSTS)
    if where:
        return "online", f"online where {own or 'W&B'} can be reached, else offline (key {where})"
    return "offline", "offline (no API key)"


def _netrc(hosts: Sequence[str]) -> str:
    """Return the place of a key for one of these hosts, or ""."""
    path = user_path(os.environ.get("NETRC") or "~/.netrc")
    try:
        known = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):  # there is none that could be read
        return ""
    return f"in {path}" if any(host in known for host in hosts) else ""


def slurm() -> Iterator[Finding]:
    """Look at the SLURM job that this process is in."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        names = {"SLURM_JOB_NODELIST": "on", "SLURM_NTASKS": "tasks", "SLURM_CPUS_PER_TASK": "cores per task"}
        told = ", ".join(f"{word} {os.environ[name]}" for name, word in names.items() if name in os.environ)
        yield Finding("slurm", OK, f"in job {job} {told}".rstrip())
        if "SLURM_STEP_ID" not in os.environ and int(os.environ.get("SLURM_NTASKS") or 1) > 1:
            yield Finding("slurm", WARN, "not an srun task", "start ranks by srun: see slurm/train.sbatch")
    elif program := shutil.which("sbatch"):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
        yield Finding("slurm", OK, f"{done.stdout.strip() or 'sbatch is there'}, not in a job")
    else:
        yield Finding("slurm", OK, "none here")
