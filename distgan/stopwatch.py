"""Where a run's time goes."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch

from distgan.world import World


class Stopwatch:
    """Training time of a run, and of the lap since the last line of metrics.

    Args:
        total_sec: Training time before this start, of a run that is taken up again.
        images: The clock at this start.
    """

    def __init__(self, world: World, total_sec: float, images: int) -> None:
        self._world, self._before_sec, self._started = world, total_sec, time.perf_counter()
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

    def lap(self, images: int) -> dict[str, float]:
        """Speed, waiting and memory since the last lap, over all ranks: the same on each, by log key."""
        now = time.perf_counter()
        mine = (now - self._lap_started, self._wait_sec, peak_memory(self._world.device))
        ranks = self._world.gather(mine)
        num, seconds = images - self._lap_images, ranks[0][0]  # rank 0's clock
        self._lap_started, self._lap_images, self._wait_sec = now, images, 0.0
        return {
            "Perf/sec_per_kimg": 1000 * seconds / num,
            "Perf/img_per_sec": num / seconds,
            "Perf/img_per_sec_per_rank": num / seconds / self._world.size,
            "Perf/data_wait_pct": 100 * max(waited / total for total, waited, _ in ranks),
            "Perf/total_hours": self.total_sec / 3600,
            **{name: max(memory[name] for _, _, memory in ranks) for name in mine[2]},
        }


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak of this process's memory, and of its GPU's since the last call, in GB, by log key."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = {"Resources/cpu_mem_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peak["Resources/gpu_mem_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return peak
