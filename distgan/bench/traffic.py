"""What a loop sends to other ranks, as torch's profiler sees it: for `distgan bench`."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

# Bytes of a number, by the profiler's names of its type.
SIZES = {
    "float": 4,
    "double": 8,
    "bfloat16": 2,
    "half": 2,
    "long int": 8,
    "long": 8,
    "int": 4,
    "unsigned char": 1,
    "byte": 1,
}


def bytes_reduced(function: Callable[[], None]) -> int:
    """What this rank gives into all-reduces while the function runs, as torch's profiler sees it.

    So it counts DDP's own, with or without a communication hook, and everything else of the process.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sum(_bytes(event["name"], event.get("args", {})) for event in events if "name" in event)


def _bytes(name: str, about: dict) -> int:
    """Of an event of the trace, where it is an all-reduce; gloo and NCCL note them in ways of their own."""
    if name == "gloo:all_reduce":
        kinds, shapes = about["Input type"], about["Input Dims"]
        return sum(SIZES[_plain(kind)] * math.prod(shape) for kind, shape in zip(kinds, shapes))
    if name == "record_param_comms" and about.get("Collective name") == "allreduce":
        return SIZES[_plain(about["dtype"])] * int(about["In msg nelems"])
    return 0


def _plain(kind: str) -> str:
    return kind.lower().removeprefix("c10::")
