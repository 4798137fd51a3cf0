"""Timers of a run: training time, phases of the loop, and ranks that are slow."""

import contextlib
import resource
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from distgan.distributed.process_group import World

# The phases of the loop. What is none of these is maintenance.
D_STEP, G_STEP = "in a step of D", "in a step of G"
TRAINING = ("waiting for data", D_STEP, G_STEP, "averaging weights", "between two iterations")
SLOW, SLOW_INTERVALS = 0.3, 2  # a rank costs the others this share of their time, in this number of intervals in a row


@dataclass
class Interval:
    """One rank's interval between two lines of metrics."""

    host: str
    total_sec: float
    wait_sec: float  # for data
    work_sec: float  # see `PhaseTimer.compute`
    phases: dict[str, float]
    memory: dict[str, float]


class PhaseTimer:
    """Measures a run's training time, and the interval since the last line of metrics.

    Args:
        total_sec: Training time before this start, of a run that is resumed.
        images: The clock at this start.
    """

    def __init__(self, world: World, total_sec: float, images: int) -> None:
        self._world, self._before_sec, self._started = world, total_sec, time.perf_counter()
        self._interval_started, self._interval_images = self._started, images
        self._wait_sec = self._work_sec = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._slow_intervals, self._slow_rank = 0, -1
        self._timeline = Timeline(world.device)

    def phase(self, name: str) -> None:
        """Begin a phase of the loop."""
        self._timeline.phase(name)

    @property
    def total_sec(self) -> float:
        return self._before_sec + time.perf_counter() - self._started

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Time waiting for data, within this context."""
        started = time.perf_counter()
        yield
        self._wait_sec += time.perf_counter() - started

    @contextlib.contextmanager
    def compute(self) -> Iterator[None]:
        """Time work of the device that is the same on every rank and waits for no other rank, within this context."""
        if self._world.device.type == "cuda":
            span = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            span[0].record()
            yield
            span[1].record()
            self._events.append(span)
        else:
            started = time.perf_counter()
            yield
            self._work_sec += time.perf_counter() - started

    def interval(self, images: int) -> tuple[dict[str, float], str]:
        """Return speed, waiting and memory since the last call, over all ranks: the same on each.

        Returns:
            The numbers by log key, and a warning about a rank that the others have been waiting for, or "".
        """
        now = time.perf_counter()
        if self._events:
            self._events[-1][1].synchronize()
            self._work_sec = sum(start.elapsed_time(end) for start, end in self._events) / 1000
        mine = Interval(
            socket.gethostname(),
            now - self._interval_started,
            self._wait_sec,
            self._work_sec,
            phases(self._timeline.pop()),
            peak_memory(self._world.device),
        )
        intervals = self._world.all_gather_object(mine)
        num, seconds = images - self._interval_images, intervals[0].total_sec  # rank 0's clock
        self._interval_started, self._interval_images, self._events = now, images, []
        self._wait_sec = self._work_sec = 0.0
        rank, skew = slowest_rank(intervals)
        row = {
            "Perf/sec_per_kimg": 1000 * seconds / num,
            "Perf/img_per_sec": num / seconds,
            "Perf/img_per_sec_per_rank": num / seconds / self._world.size,
            "Perf/data_wait_pct": 100 * max(interval.wait_sec / interval.total_sec for interval in intervals),
            "Perf/rank_skew_pct": 100 * skew,
            "Perf/total_hours": self.total_sec / 3600,
            **intervals[0].phases,
            **{name: max(interval.memory[name] for interval in intervals) for name in mine.memory},
        }
        return row, self._straggler_warning(rank, skew, intervals)

    def _straggler_warning(self, rank: int, skew: float, intervals: list[Interval]) -> str:
        """Return a warning, once, when the same rank was the slowest by far for some intervals in a row; else ""."""
        is_slow = skew > SLOW
        self._slow_intervals = self._slow_intervals + 1 if is_slow and rank == self._slow_rank else int(is_slow)
        self._slow_rank = rank
        if self._slow_intervals != SLOW_INTERVALS:
            return ""
        slow = intervals[rank]
        return (
            f"rank {rank} on {slow.host} is slow: the others wait for it {skew:.0%} of the time "
            f"(it waits for data {slow.wait_sec / slow.total_sec:.0%} of the time)"
        )


def slowest_rank(intervals: list[Interval]) -> tuple[int, float]:
    """Return the rank that the others wait for most, and the share of the time that this costs them.

    A rank is behind by what it waits longer for data than the median rank, and what it takes longer for the same work.
    """
    if len(intervals) == 1:
        return 0, 0.0
    wait, work = (
        statistics.median_low(values) for values in ([x.wait_sec for x in intervals], [x.work_sec for x in intervals])
    )
    lost = [
        max(0.0, interval.wait_sec - wait) / interval.total_sec
        + (max(0.0, 1 - work / interval.work_sec) if interval.work_sec else 0.0)
        for interval in intervals
    ]
    rank = max(range(len(intervals)), key=lost.__getitem__)
    return rank, min(1.0, lost[rank])


def phases(spent: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Return a rank's time by log key, from a timeline's seconds and counts."""
    row = {}
    for name, phase in (("Perf/step_ms_D", D_STEP), ("Perf/step_ms_G", G_STEP)):
        seconds, num = spent.get(phase, (0.0, 0))
        row[name] = 1000 * seconds / max(1, num)
    return row | {"Perf/maintenance_sec": sum(seconds for name, (seconds, _) in spent.items() if name not in TRAINING)}


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak of this process's memory, and of its GPU's since the last call, in GB, by log key."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = {"Resources/cpu_mem_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peak["Resources/gpu_mem_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        peak["Resources/gpu_mem_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
        peak["Resources/alloc_retries"] = float(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))
        torch.cuda.reset_peak_memory_stats(device)
    return peak


class Timeline:
    """Durations by name: of the host's clock on a CPU; on a GPU of the device's own, from event to event.

    A GPU works through its queue, so the time from the event before a phase to the event after it is what the device
    spent there, waiting for the host included. No event is waited for before `pop`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._phases: list[tuple[str, float | torch.cuda.Event]] = []
        self._spans: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    def phase(self, name: str) -> None:
        """Begin a phase, and end the one before it."""
        self._phases.append((name, self._now()))

    def time_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Time the optimizer's steps too, which are within phases."""
        started: list[float | torch.cuda.Event] = []
        optimizer.register_step_pre_hook(lambda *_: started.append(self._now()))
        optimizer.register_step_post_hook(lambda *_: self._spans.append((name, started.pop(), self._now())))

    def pop(self) -> dict[str, tuple[float, int]]:
        """Return seconds and number of each phase and span since the last call, and end the current phase."""
        self.phase("")
        if self._on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        between = [(name, start, end) for (name, start), (_, end) in zip(self._phases, self._phases[1:]) if name]
        for name, start, end in between + self._spans:
            seconds = seconds_between(start, end)
            totals[name] = (totals[name][0] + seconds, totals[name][1] + 1)
        self._phases, self._spans = [], []
        return dict(totals)

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def seconds_between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Return the seconds from one moment to another, of the host's clock or of the device's."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert not isinstance(start, float)
    assert not isinstance(end, float)
    return start.elapsed_time(end) / 1000
