"""When the phases of a training loop begin and end."""

import time
from collections import defaultdict

import torch


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
