"""Check GPUs: what the driver lists, and whether this torch can use it."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType

from distgan.storage.formatting import one_line
from distgan.tools.doctor.finding import FAIL, OK, WARN, Finding


def torch_build() -> Iterator[Finding]:
    """Look at how torch was built."""
    torch = _torch()
    if isinstance(torch, Exception):
        yield Finding("torch", FAIL, f"cannot be imported ({one_line(torch)})", "pip install --force-reinstall torch")
        return
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
    yield Finding("torch", OK, f"{torch.__version__}, built {built}")


def cards() -> Iterator[Finding]:
    """Compare the driver with torch, then check each card that torch sees."""
    torch = _torch()
    if isinstance(torch, Exception):
        return
    known = _known_to_driver()
    if not known and not torch.cuda.is_available():
        yield Finding("gpu", OK, "no GPU here: runs use the CPU, with gloo between ranks")
        return
    yield _driver_and_torch(known, torch.version.cuda, torch.cuda.is_available(), _why_not)
    if not torch.cuda.is_available():
        return
    kernels = torch.cuda.get_arch_list()
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        description = f"{card.name}, {total / 1e9:.0f} GB, {free / 1e9:.0f} GB free, compute {card.major}.{card.minor}"
        if card.major < 8:
            description += ", no bfloat16 (set train.precision=fp32 and train.penalty_precision=fp32)"
        if not has_kernels(card.major, card.minor, kernels):
            description += f"; torch has kernels for {', '.join(kernels)}"
            yield Finding(f"gpu {number}", FAIL, description, "install a torch build for this card")
        elif free < 0.8 * total:
            yield Finding(f"gpu {number}", WARN, description, "another process holds its memory: see nvidia-smi")
        else:
            yield Finding(f"gpu {number}", OK, description)


def _torch() -> ModuleType | Exception:
    try:
        import torch
    except Exception as error:  # a broken installation raises what it likes
        return error
    return torch


def has_kernels(major: int, minor: int, kernels: list[str]) -> bool:
    """Return whether a card can run a build: its generation up to its version, or code for an older one (PTX)."""
    for kind, _, digits in (name.partition("_") for name in kernels):
        number = int("".join(filter(str.isdecimal, digits)) or 0)
        built = (number // 10, number % 10)
        if built <= (major, minor) and (kind == "compute" or built[0] == major):
            return True
    return False


def nccl() -> Iterator[Finding]:
    """Look at NCCL, through which GPUs exchange gradients."""
    torch = _torch()
    if isinstance(torch, Exception) or not torch.cuda.is_available():
        return
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        yield Finding("nccl", OK, ".".join(map(str, torch.cuda.nccl.version())))
    elif torch.cuda.device_count() > 1:
        yield Finding("nccl", WARN, "not in this torch", "several GPUs need a torch built with NCCL")


def _known_to_driver() -> list[str]:
    """Return a line for each card that the driver knows, as "name, driver version"; none without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _driver_and_torch(known: list[str], cuda: str | None, available: bool, why_not: Callable[[], str]) -> Finding:
    """Tell whether torch, built for this CUDA or none, can use the cards that the driver knows."""
    description = f"lists {len(known)} card(s): {'; '.join(dict.fromkeys(known))}" if known else "no nvidia-smi"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if available:
        return Finding("driver", OK, description)
    if cuda is None:
        return Finding(
            "driver", FAIL, f"{description}, but torch is built for the CPU only", "install a CUDA build of torch"
        )
    if hidden in ("", "-1"):
        cure = "unset CUDA_VISIBLE_DEVICES, or ask SLURM for GPUs"
        return Finding("driver", FAIL, f"{description}, but CUDA_VISIBLE_DEVICES={hidden!r} hides them", cure)
    cure = f"update the driver, or install a torch for an older CUDA than {cuda}"
    return Finding("driver", FAIL, f"{description}, but torch cannot use them: {why_not()}", cure)


def _why_not() -> str:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except Exception as error:
        return one_line(error)
    return "without a stated reason"
