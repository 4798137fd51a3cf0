"""What the launcher said of the ranks, read from the environment before torch is imported."""

import os
from collections.abc import Callable, MutableMapping
from typing import TypeVar

from distgan.errors import ConfigError, DistganError, MachineError, of_kind

T = TypeVar("T")
NODE_RANK = "DISTGAN_NODE_RANK"  # LOCAL_RANK as the launcher gave it, before it became the number of a GPU


def settle(environment: MutableMapping[str, str] = os.environ) -> int:
    """Make the environment what torch.distributed expects, and return the number of ranks.

    Under srun each task is a rank; MASTER_ADDR and MASTER_PORT come from the batch script. That is keyed on
    SLURM_STEP_ID, since an interactive shell inside of an allocation has the job's id as well.

    Raises:
        MachineError, ConfigError: for ways of launching that would silently start something else than asked for.
    """
    if "RANK" not in environment and "SLURM_STEP_ID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_NTASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["LOCAL_WORLD_SIZE"] = str(len(environment["SLURM_GTIDS"].split(",")))
        if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
            raise MachineError(
                "srun tasks need MASTER_ADDR and MASTER_PORT to find one another: see slurm/train.sbatch"
            )
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    by_accelerate = "MASTER_ADDR" in environment and "SLURM_STEP_ID" not in environment
    if on_cpu and by_accelerate and "RANK" not in environment:
        raise MachineError(
            "`accelerate launch --cpu --num_processes N` starts a single process, whatever N is: use launch/cpu.sh, or "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        raise ConfigError("`accelerate launch --dynamo_backend` breaks gradient penalties: leave it out")
    size = environment.get("WORLD_SIZE", "1")
    if not size.isdecimal() or not environment.get("RANK", "0").isdecimal():
        raise MachineError(f"WORLD_SIZE={size} and RANK={environment.get('RANK')} are not whole numbers")
    return int(size)


def choose_gpu(num_visible: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make LOCAL_RANK the number of this rank's GPU among the `num_visible` that it sees.

    Where a task sees fewer GPUs than its node has ranks (its own alone, by UUID, MIG, cgroup or --gpu-bind), Accelerate
    takes LOCAL_RANK modulo their number for the device, but LOCAL_RANK as it stands for DDP and barriers.
    """
    if num_visible and "LOCAL_RANK" in environment:
        environment.setdefault(NODE_RANK, environment["LOCAL_RANK"])
        environment["LOCAL_RANK"] = str(local_rank(environment) % num_visible)


def rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """Of this process; 0 without a launcher."""
    return _number(environment.get("RANK", ""))


def local_rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """Of this process among those of its machine; where they see different GPUs, the number of its own there."""
    return _number(environment.get("LOCAL_RANK", ""))


def node_rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """Of this process among those of its machine, whichever GPUs it sees."""
    return _number(environment.get(NODE_RANK, environment.get("LOCAL_RANK", "")))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def together(function: Callable[[], T], gather: Callable[[object], list]) -> T:
    """Run something on every rank. Where it fails on some, all ranks raise the first of these errors.

    Args:
        gather: What each rank passes, in rank order, on every rank.
    """
    result, error = None, None
    try:
        result = function()
    except DistganError as failure:
        error = failure
    told = gather((type(error).__name__, str(error)) if error else None)
    failed = [number for number, words in enumerate(told) if words]
    if not failed:
        return result
    if len(failed) == len(told) and error is not None:
        raise error  # on all alike
    kind, text = told[failed[0]]
    raise of_kind(kind, f"rank {failed[0]}: {text}")
