"""The devices of a run's ranks: what each rank has, and what does not go together.

Ranks compare them through the store at which they meet, before NCCL starts: it would refuse a GPU that two of them
have less clearly, or hang.
"""

import contextlib
import json
import re
import socket
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from distgan.distributed import launch_env
from distgan.errors import MachineError

READ_SEC = 10  # that rank 0, which holds the store, leaves the others to read an error before it ends
CPU_INSTEAD = "ACCELERATE_USE_CPU=true runs on the CPU"


class RankDevice(NamedTuple):
    """The device of one rank.

    Attributes:
        name: Name of the GPU; "CPU" without one.
        uuid: UUID of the GPU, the same for all processes of a host; "" without one.
        has_bf16: Whether it computes in bfloat16 by itself.
    """

    host: str
    name: str
    uuid: str = ""
    has_bf16: bool = True


def require_usable_gpus() -> int:
    """Start CUDA if there are GPUs, and return their number; 0 where the environment asks for the CPU.

    Raises:
        MachineError: There are some, and this torch cannot use them: it would take the CPU, or end in a traceback.
    """
    if launch_env.uses_cpu():
        return 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        num = torch.cuda.device_count()
    problem = next((str(one.message) for one in said if "CUDA initialization" in str(one.message)), "")
    if num and not problem:
        try:
            torch.cuda.init()
        except RuntimeError as error:
            problem = str(error)
    if problem:
        raise MachineError(_unusable(problem))
    return num


def _unusable(problem: str) -> str:
    """Return one line with the fix for what torch says about GPUs that it cannot use."""
    host, build = socket.gethostname(), f"torch {torch.__version__}, which is built for CUDA {torch.version.cuda}"
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", problem):
        version = int(found[1])
        return (
            f"the NVIDIA driver of {host} supports CUDA {version // 1000}.{version % 1000 // 10} at most, too old for "
            f"{build}: update the driver, or install a torch for an older CUDA (https://pytorch.org); {CPU_INSTEAD}"
        )
    return f"{build}, cannot use the GPUs of {host}: {' '.join(problem.split())[:200]}: see nvidia-smi; {CPU_INSTEAD}"


def take_device() -> torch.device:
    """Make this rank's GPU the current one, and return it; the CPU where there is none."""
    if not require_usable_gpus():
        return torch.device("cpu")
    device = torch.device("cuda", launch_env.local_rank())
    torch.cuda.set_device(device)
    return device


def describe(device: torch.device) -> RankDevice:
    """Return what the other ranks must know of this rank's device, which is the current one."""
    host = socket.gethostname()
    if device.type != "cuda":
        return RankDevice(host, "CPU")
    properties = torch.cuda.get_device_properties(device)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return RankDevice(host, properties.name, str(properties.uuid), has_bf16)


def compare(store: dist.Store, rank: int, size: int, own: RankDevice, bf16: bool) -> list[str]:
    """Compare the devices of all ranks; returns the warnings of `check`, and raises its error, on every rank.

    Rank 0 compares them and the others read its result, so that the store has few requests.
    """
    store.set(f"device {rank}", json.dumps(own))
    if rank > 0:
        error_text, found = json.loads(store.get("result"))
        store.set(f"read {rank}", "")
        if error_text:
            raise MachineError(error_text)
        return list(found)
    devices = [RankDevice(*json.loads(text)) for text in store.multi_get([f"device {i}" for i in range(size)])]
    try:
        found = check(devices, bf16)
    except MachineError as error:
        store.set("result", json.dumps([str(error), []]))
        with contextlib.suppress(dist.DistError):
            store.wait([f"read {i}" for i in range(1, size)], timedelta(seconds=READ_SEC))
        raise
    store.set("result", json.dumps(["", found]))
    return found


def check(devices: Sequence[RankDevice], bf16: bool) -> list[str]:
    """Return a warning where ranks have GPUs of different kinds.

    Args:
        devices: In rank order.
        bf16: Whether networks are to compute in bfloat16.

    Raises:
        MachineError: Some ranks have a GPU and others none, two have the same one, or bfloat16 is not possible.
    """
    first: dict[tuple[str, str], int] = {}
    for rank, device in enumerate(devices):
        if bool(device.uuid) != bool(devices[0].uuid):
            without, with_one = (rank, 0) if devices[0].uuid else (0, rank)
            raise MachineError(
                f"rank {without} on {devices[without].host} has no GPU, and rank {with_one} on "
                f"{devices[with_one].host} has one ({devices[with_one].name}): start all ranks on GPUs (`distgan "
                "doctor` says why there is none), or all with ACCELERATE_USE_CPU=true"
            )
        other = first.setdefault((device.host, device.uuid), rank)
        if device.uuid and other != rank:
            raise MachineError(
                f"ranks {other} and {rank} on {device.host} have the same GPU ({device.name}, {device.uuid}): start as "
                "many ranks on a machine as it has GPUs (--num_processes, --ntasks-per-node), which see all of them or "
                "each another one (CUDA_VISIBLE_DEVICES, --gpus-per-task)"
            )
        if bf16 and not device.has_bf16:
            raise MachineError(
                f"rank {rank} on {device.host} has a GPU without bfloat16 ({device.name}): set train.precision=fp32 "
                "and train.penalty_precision=fp32, or use GPUs of compute capability 8.0 and above, such as an A100"
            )
    kinds: dict[str, list[int]] = {}
    for rank, device in enumerate(devices):
        kinds.setdefault(device.name, []).append(rank)
    if len(kinds) < 2:
        return []
    shown = "; ".join(f"{name}: {_numbers(ranks)}" for name, ranks in kinds.items())
    return [f"ranks have GPUs of different kinds ({shown}): in each step, all wait for the slowest"]


def _numbers(ranks: Sequence[int]) -> str:
    """Return rank numbers as text: "ranks 0-7, 12"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
