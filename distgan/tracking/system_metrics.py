"""How busy the machines of a run are."""

import time

import psutil
import torch

from distgan.distributed.process_group import World


class NodeLoad:
    """Load of every node since the last look, for `run.log_system_metrics`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._gpu = world.device if world.device.type == "cuda" else None
        self._last, self._sent = time.monotonic(), sent_bytes()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def row(self) -> dict[str, float]:
        """By log key, `System/node<number>_...`: percent of its cores and memory, MB/s that it sends over its network,
        and percent of the time that its GPUs have something to do. Called by all ranks, the same on each."""
        now, sent = time.monotonic(), sent_bytes()
        mine = {
            "cpu_pct": psutil.cpu_percent(),
            "mem_pct": psutil.virtual_memory().percent,
            "sent_mb_per_sec": (sent - self._sent) / 1e6 / max(1e-3, now - self._last),
            "gpu_pct": gpu_percent(self._gpu),
        }
        self._last, self._sent = now, sent
        of_ranks, row = self._world.gather(mine), {}
        for node in range(0, self._world.size, self._world.local_size):
            told, number = of_ranks[node : node + self._world.local_size], node // self._world.local_size
            row |= {f"System/node{number}_{name}": value for name, value in told[0].items() if value is not None}
            busy = [one["gpu_pct"] for one in told if one["gpu_pct"] is not None]
            if busy:
                row[f"System/node{number}_gpu_pct"] = sum(busy) / len(busy)
        return row


def sent_bytes() -> int:
    """Over all interfaces but the loopback; InfiniBand that goes past the kernel is not counted."""
    return sum(card.bytes_sent for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo")


def gpu_percent(device: torch.device | None) -> float | None:
    """Of the last moments, or None where there is no GPU, or nothing installed that could tell (nvidia-ml-py)."""
    if device is None:
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # NVML has errors of its own, where a GPU is divided (MIG, vGPU) or not ours to ask
        return None
