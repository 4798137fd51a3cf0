"""When the phases of a training loop begin and end, and what they send: for `distgan bench`."""

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
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


class Timeline:
    """Durations by name: of the host's clock on a CPU; on a GPU of the device's own, from event to event.

    A GPU works through its queue, so the time from the event before a phase to the event after it is what the device
    spent there, waiting for the host included. No event is waited for before `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._phases: list[tuple[str, float | torch.cuda.Event]] = []
        self._spans: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    def phase(self, name: str) -> None:
        """A phase begins, and the one before it is over."""
        self._phases.append((name, self._now()))

    def watch(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Time the optimizer's steps too, which lie within phases."""
        started: list[float | torch.cuda.Event] = []
        optimizer.register_step_pre_hook(lambda *_: started.append(self._now()))
        optimizer.register_step_post_hook(lambda *_: self._spans.append((name, started.pop(), self._now())))

    def take(self) -> dict[str, tuple[float, int]]:
        """Seconds and number of each phase and span since the last call. The phase that goes on is ended here."""
        self.phase("")
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        between = [(name, start, end) for (name, start), (_, end) in zip(self._phases, self._phases[1:]) if name]
        for name, start, end in between + self._spans:
            seconds = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            found[name] = (found[name][0] + seconds, found[name][1] + 1)
        self._phases, self._spans = [], []
        return dict(found)

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


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
