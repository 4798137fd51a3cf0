"""torch.compile, set up for training with gradient penalties under DDP."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch

from distgan.errors import MachineError

SMALLER = "or set train.compile=off"


def compiled(function: Callable[..., Any], device: torch.device, backend: str = "inductor") -> Callable[..., Any]:
    """Return a function or module to be compiled at its first call, as one graph without breaks.

    A module stays as it is, its parameters and their names too.

    Raises:
        MachineError: This machine lacks what compiles.
    """
    if backend == "inductor":
        require_compiler(device)
    # DDP's own cutting of graphs into buckets fails on gradients of gradients (torch 2.13). Without it, a compiled
    # backward hands its gradients over at its end, so that there is less to overlap with the all-reduce.
    torch._dynamo.config.optimize_ddp = False
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def require_compiler(device: torch.device) -> None:
    """Raise MachineError without a C++ compiler (CPU), or without Triton and a C compiler (GPU)."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise MachineError(f"train.compile needs Triton on a GPU: pip install triton, {SMALLER}")
    plusplus = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    plain = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    is_there = shutil.which(plusplus) if device.type == "cpu" else any(map(shutil.which, filter(None, plain)))
    if not is_there:
        what = f"a C++ compiler ({plusplus} is not there)" if device.type == "cpu" else "a C compiler"
        raise MachineError(f"train.compile needs {what}: install g++, set CXX or CC to another one, {SMALLER}")
