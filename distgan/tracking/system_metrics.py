"""CPU, memory, network and GPU use of each node."""

import time

import psutil
import torch

from distgan.distributed.process_group import World


class SystemMetrics:
    """Measures every node's load since the last row, for `run.log_system_metrics`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._gpu = world.device if world.device.type == "cuda" else None
        self._last, self._sent = time.monotonic(), sent_bytes()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def row(self) -> dict[str, float]:
        """Return each node's load by log key, `System/node<number>_...`; called by all ranks, the same on each.

        Percent of its cores and memory, MB/s that it sends over its network, percent of the time that its GPUs work.
        """
        now, sent = time.monotonic(), sent_bytes()
        mine = {
            "cpu_pct": psutil.cpu_percent(),
            "mem_pct": psutil.virtual_memory().percent,
            "sent_mb_per_sec": (sent - self._sent) / 1e6 / max(1e-3, now - self._last),
            "gpu_pct": gpu_percent(self._gpu),
        }
        self._last, self._sent = now, sent
        of_ranks = self._world.all_gather_object(mine)
        row: dict[str, float] = {}
        for node in range(0, self._world.size, self._world.local_size):
            node_rows, number = of_ranks[node : node + self._world.local_size], node // self._world.local_size
            row |= {f"System/node{number}_{name}": value for name, value in node_rows[0].items() if value is not None}
            busy = [one["gpu_pct"] for one in node_rows if one["gpu_pct"] is not None]
            if busy:
                row[f"System/node{number}_gpu_pct"] = sum(busy) / len(busy)
        return row


def sent_bytes() -> int:
    """Return the bytes sent over all interfaces but the loopback, without InfiniBand that goes past the kernel."""
    return sum(card.bytes_sent for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo")


def gpu_percent(device: torch.device | None) -> float | None:
    """Return the GPU's recent use, or None without a GPU or without nvidia-ml-py."""
    if device is None:
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # NVML has errors of its own, where a GPU is divided (MIG, vGPU) or not ours to ask
        return None
