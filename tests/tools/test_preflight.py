"""Hosts that are slow or wrong are named."""

from dataclasses import replace

import pytest

from distgan.distributed.process_group import World
from distgan.tools import preflight as preflight_module
from distgan.tools.preflight import PreflightResult, preflight, report

GOOD = [
    PreflightResult("a", "CPU", 0.1, True),
    PreflightResult("b", "CPU", 0.1, True, 0.5),
    PreflightResult("c", "CPU", 0.1, True, 0.6),
]


def test_good_hosts_pass() -> None:
    lines, wrong = report(GOOD)
    assert [line.partition(":")[0] for line in lines] == ["a", "b", "c"]
    assert wrong == []


def test_a_slow_or_wrong_host_is_named() -> None:
    more = [*GOOD, PreflightResult("d", "CPU", 0.1, True, 0.5)]
    for change, told in (
        ({"product_sec": 0.3}, "d computes 3.0 times as slowly"),
        ({"exchange_sec": 2.0}, "d exchanges data 3.3 times as slowly"),
        ({"right": False}, "d has wrong sums over the ranks"),
    ):
        _, wrong = report([*GOOD, replace(more[-1], **change)])
        assert len(wrong) == 1
        assert told in wrong[0]


def test_sums_are_as_fast_as_their_slowest_rank() -> None:
    lines, wrong = report([replace(one, sum_sec=sec) for one, sec in zip(GOOD, (0.01, 0.067108864, 0.02))])
    assert lines[-1] == "sums over 3 ranks: 1 GB/s"
    assert wrong == []


def test_connections_are_made_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL connects two ranks at their first exchange, which may take a hundred times as long as the exchange."""
    connected: set[int] = set()

    def exchange(other: int, num: int) -> float:
        taken = 0.5 if other in connected else 50.0 * other
        connected.add(other)
        return taken

    world = World()
    monkeypatch.setattr(preflight_module, "SIDE", 64)
    for rank, host in enumerate("abc"):
        monkeypatch.setattr(preflight_module.socket, "gethostname", lambda host=host: host)
        connected.clear()
        monkeypatch.setattr(world, "rank", rank)
        monkeypatch.setattr(world, "all_gather_object", lambda item, host=host: list("abc") if item == host else [item])
        monkeypatch.setattr(world, "ping_pong", exchange)
        (found,) = preflight(world)
        assert found.exchange_sec == (0.5 if rank else None)


def test_one_process_is_a_host_too() -> None:
    (found,) = preflight(World())
    assert found.right
    assert found.exchange_sec is None
    assert report([found])[1] == []
