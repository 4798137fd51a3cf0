"""Where a run's time goes."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Time of one rank: in all, since the last lap, and of that, time spent waiting for data.

    Args:
        total_sec: Training time before this start, of a run that is taken up again.
        images: The clock at this start.
    """

    def __init__(self, total_sec: float, images: int):
        self._before_sec, self._started = total_sec, time.perf_counter()
        self._lap_started, self._lap_images, self._wait_sec = self._started, images, 0.0

    @property
    def total_sec(self) -> float:
        return self._before_sec + time.perf_counter() - self._started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        started = time.perf_counter()
        yield
        self._wait_sec += time.perf_counter() - started

    def lap(self, images: int) -> tuple[int, float, float]:
        """Images, seconds, and seconds of waiting since the last lap."""
        now = time.perf_counter()
        lap = images - self._lap_images, now - self._lap_started, self._wait_sec
        self._lap_started, self._lap_images, self._wait_sec = now, images, 0.0
        return lap


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak of the accelerator's memory since the last call, and of this process's, in GB, by log key."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = {"Resources/cpu_mem_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peak["Resources/gpu_mem_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return peak
