"""torch.compile, set up for training with gradient penalties under DDP."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from distgan.errors import MachineError
from distgan.models.grouped_conv import grouped_conv2d

SMALLER = "or set train.compile=off"


def compiled(
    function: Callable[..., Any],
    device: torch.device,
    backend: str | Callable = "inductor",
    cuda_graphs: bool = False,
) -> Callable[..., Any]:
    """Return a function or module to be compiled at its first call, as one graph without breaks.

    A module stays as it is, its parameters and their names too.

    Args:
        cuda_graphs: Replay the forward as one CUDA graph and the backward as another, by the compiler's own means. Call
            `release_outputs` before each step then.

    Raises:
        MachineError: This machine lacks what compiles.
    """
    if backend == "inductor":
        require_compiler(device)
    # DDP's own cutting of graphs into buckets fails on gradients of gradients (torch 2.13). Without it, a compiled
    # backward hands its gradients over at its end, so that there is less to overlap with the all-reduce.
    torch._dynamo.config.optimize_ddp = False
    # A traced autograd.Function loses the gradients of what torch.func.grad makes (torch 2.13); as a whole it keeps
    # them. A decorator would say so too, but load the compiler in each process, which takes seconds.
    torch.compiler.allow_in_graph(grouped_conv2d)
    if not cuda_graphs:
        return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
    options: dict[str, Any] | None = {"triton.cudagraphs": True} if backend == "inductor" else None
    replayed = torch.compile(function, fullgraph=True, dynamic=False, backend=backend, options=options)

    def call(*args: Any, **kwargs: Any) -> Any:
        # A graph writes to the same memory each time, and losses, statistics and samples keep some of it for longer.
        return tree_map_only(Tensor, Tensor.clone, replayed(*args, **kwargs))

    return call


def release_outputs() -> None:
    """Let CUDA graphs write to the memory of all that they have returned so far."""
    torch.compiler.cudagraph_mark_step_begin()


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
