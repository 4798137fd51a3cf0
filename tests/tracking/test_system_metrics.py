"""How busy nodes are, told by their first ranks."""

from types import SimpleNamespace

import pytest
import torch

from distgan.tracking import system_metrics
from distgan.tracking.system_metrics import SystemMetrics


def test_each_node_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = iter([10.0, 30.0, None, 50.0])

    def gather(mine: dict) -> list[dict]:
        return [mine | {"cpu_pct": float(rank), "gpu_pct": next(gpus)} for rank in range(4)]

    world = SimpleNamespace(size=4, local_size=2, device=torch.device("cpu"), all_gather_object=gather)
    sent = iter([1_000_000, 5_000_000])
    monkeypatch.setattr(system_metrics, "sent_bytes", lambda: next(sent))
    monkeypatch.setattr(system_metrics.time, "monotonic", iter([10.0, 12.0]).__next__)
    row = SystemMetrics(world).row()
    assert row["System/node0_cpu_pct"] == 0.0
    assert row["System/node1_cpu_pct"] == 2.0
    assert row["System/node0_sent_mb_per_sec"] == 2.0
    assert (row["System/node0_gpu_pct"], row["System/node1_gpu_pct"]) == (20.0, 50.0)
    assert 0 < row["System/node0_mem_pct"] <= 100


def test_a_gpu_that_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML has errors of its own, as for a part of a GPU."""

    class NVMLError(Exception):
        pass

    def refuse(device: torch.device) -> int:
        raise NVMLError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert system_metrics.gpu_percent(torch.device("cuda", 0)) is None


def test_a_machine_without_gpus_says_nothing_of_them() -> None:
    world = SimpleNamespace(size=1, local_size=1, device=torch.device("cpu"), all_gather_object=lambda mine: [mine])
    names = set(SystemMetrics(world).row())
    assert names == {"System/node0_cpu_pct", "System/node0_mem_pct", "System/node0_sent_mb_per_sec"}
