"""Permissions that no file gives: settings of who starts a command, and variables that a config may read."""

import os

from distgan.config.fields import leaves
from distgan.config.schema import Config

READABLE_ENVIRONMENT = (
    *("HOME", "USER", "TMPDIR", "SCRATCH", "WORK", "DATA_ROOT", "WANDB_RUN_ID", "WANDB_SWEEP_ID"),
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    *("SLURM_TMPDIR", "SLURM_SUBMIT_DIR"),
)  # no patterns: of SLURM_*, SLURM_JWT is a credential
PERSONAL = [name for name, setting in leaves(Config) if setting.metadata.get("personal")]


def is_granted_by_environment(name: str) -> bool:
    """Return whether the environment of who starts the command gives a right, as in DISTGAN_ALLOW_PIPE=1."""
    return os.environ.get(_variable(name), "") == "1"


def how_to_grant(name: str) -> str:
    """Return how who starts a command gives a right."""
    return f"write {name}=true on the command line, or {_variable(name)}=1 in the environment"


def _variable(name: str) -> str:
    return "DISTGAN_" + name.rpartition(".")[2].upper()


def read_environment(name: str, default: str | None = None) -> str | None:
    """Return a variable that a config names, as in ${oc.env:HOME}.

    Only harmless ones may enter, since a config is written to W&B too. Raises ValueError for others.
    """
    if name not in READABLE_ENVIRONMENT:
        allowed = ", ".join(READABLE_ENVIRONMENT)
        raise ValueError(f"a config may not read the environment variable {name}, only {allowed}")
    if name not in os.environ and default is None:
        raise ValueError(f"the environment variable {name} is not set")
    return os.environ.get(name, default)
