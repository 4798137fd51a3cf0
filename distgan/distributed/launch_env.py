"""Ranks as the launcher gives them, read from the environment before torch is imported."""

import os
from collections.abc import Callable, MutableMapping
from typing import TypeVar, cast

from distgan.errors import ConfigError, DistganError, MachineError, of_kind

T = TypeVar("T")
NODE_RANK = "DISTGAN_NODE_RANK"  # LOCAL_RANK as the launcher gave it, before it became the number of a GPU

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
OTHER_WAYS = {  # in which Accelerate can train
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def init_rank_env(environment: MutableMapping[str, str] = os.environ) -> int:
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
    on_cpu = uses_cpu(environment)
    by_accelerate = "MASTER_ADDR" in environment and "SLURM_STEP_ID" not in environment
    if on_cpu and by_accelerate and "RANK" not in environment:
        raise MachineError(
            "`accelerate launch --cpu --num_processes N` starts a single process, whatever N is: use launch/cpu.sh, or "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        raise ConfigError("`accelerate launch --dynamo_backend` breaks gradient penalties: leave it out")
    for variable, what in OTHER_WAYS.items():
        if _is_on(environment.get(variable, "")):
            raise ConfigError(
                f"{variable}={environment[variable]}: a GAN trains under plain data parallelism, not {what}: "
                "use `accelerate launch --multi_gpu`, and make sure that no default_config.yaml says otherwise"
            )
    return _size(environment)


def _size(environment: MutableMapping[str, str]) -> int:
    """Return the number of ranks; raise MachineError where a launcher's variables are incomplete."""
    variables = {name: environment[name] for name in RANK_VARIABLES if name in environment}
    fix = f"without a launcher, `unset {' '.join(variables)}`; with several ranks, start them by launch/*.sh"
    for name, value in variables.items():
        if not (value.isascii() and value.isdecimal()):
            raise MachineError(f"{name}={value!r} is not a whole number: {fix}")
    size = int(variables.get("WORLD_SIZE", "1"))
    if size == 1 and not {"RANK", "LOCAL_RANK"} & variables.keys():
        return 1
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if not environment.get(name)]:
        shown = " ".join(f"{name}={value}" for name, value in variables.items())
        raise MachineError(f"{shown} is set in the environment, but no {' and no '.join(missing)}: {fix}")
    if int(variables["RANK"]) >= size:
        raise MachineError(f"RANK={variables['RANK']}: with WORLD_SIZE={size} it is below {size}: {fix}")
    return size


def ignored_settings(precision: str, environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """List settings of Accelerate's flags or its default_config.yaml that are not used, one line each.

    Not obeyed, since a run is what its config says: the same on the machine where it is resumed.
    """
    lines = []
    theirs = (environment.get("ACCELERATE_MIXED_PRECISION") or "no").lower()
    if theirs not in ("no", "none", "bf16" if precision == "bf16" else "no"):
        ours = "set train.precision=bf16" if theirs == "bf16" else "train.precision is fp32 or bf16"
        lines.append(f"Accelerate's mixed_precision={theirs} is not used; this run has {precision}: {ours}")
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or "1"
    if steps not in ("1", "auto"):
        lines.append(
            f"Accelerate's gradient_accumulation_steps={steps} is not used: set train.micro_batch, the images per rank "
            "and pass; train.batch stays the images of a step"
        )
    return lines


def uses_cpu(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether the environment asks for the CPU, also where there are GPUs."""
    return _is_on(environment.get("ACCELERATE_USE_CPU", ""))


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true", "yes", "on", "y", "t")


def choose_gpu(num_visible: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make LOCAL_RANK the number of this rank's GPU among the `num_visible` that it sees.

    Where a task sees fewer GPUs than its node has ranks (its own alone, by UUID, MIG, cgroup or --gpu-bind), Accelerate
    takes LOCAL_RANK modulo their number for the device, but LOCAL_RANK as it stands for DDP and barriers.
    """
    if num_visible and "LOCAL_RANK" in environment:
        environment.setdefault(NODE_RANK, environment["LOCAL_RANK"])
        environment["LOCAL_RANK"] = str(local_rank(environment) % num_visible)


def rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """Return this process's rank; 0 without a launcher."""
    return _number(environment.get("RANK", ""))


def local_rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """Return this process's number on its machine; where ranks see different GPUs, the number of its own there."""
    return _number(environment.get("LOCAL_RANK", ""))


def node_rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """Return this process's number on its machine, whichever GPUs it sees."""
    return _number(environment.get(NODE_RANK, environment.get("LOCAL_RANK", "")))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def run_on_all(function: Callable[[], T], gather: Callable[[object], list]) -> T:
    """Run something on every rank. Where it fails on some, all ranks raise the first of these errors.

    Args:
        gather: Returns what each rank passes, in rank order, on every rank.
    """
    result, error = cast(T, None), None
    try:
        result = function()
    except DistganError as failure:
        error = failure
    errors = gather((type(error).__name__, str(error)) if error else None)
    failed = [number for number, text in enumerate(errors) if text]
    if not failed:
        return result
    if len(failed) == len(errors) and error is not None:
        raise error  # on all alike
    kind, text = errors[failed[0]]
    raise of_kind(kind, f"rank {failed[0]}: {text}")
