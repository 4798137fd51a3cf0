"""Ranks that hang, and a run that is killed all the time."""

import os
import re
import time
from pathlib import Path

import pytest
from processes import output, run_ranks
from range_server import RangeServer
from runs import status, write_config
from shards import numbered_shard
from storm import storm, tmpfs

from distgan.data.shard_index import scan


class Stalling(RangeServer):
    """Answers what tells of a shard, and begins to answer what holds its samples."""

    def next_fault(self) -> tuple[str, int]:
        path, start, stop = self.ranges[-1]
        return ("stall", 10) if path.endswith(".tar") and stop - start > 4096 else ("", 0)


@pytest.mark.multi
@pytest.mark.timeout(120)
def test_a_rank_that_hangs_ends_the_run_with_a_word(tmp_path: Path) -> None:
    """A server that falls silent, and a config that would wait for hours."""
    run, log, shard = tmp_path / "run", tmp_path / "log", numbered_shard(range(100))
    with Stalling({"/0.tar": shard, "/0.tar.index": scan(shard, len(shard)).to_bytes()}) as server:
        config = write_config(tmp_path / "tiny.yaml", Path("unused"), more="run: {timeout_sec: 10}\n")
        more = [f"data.shards={server.address}/0.tar", "data.timeout_sec=9999", "sample.every=0"]
        command = ["-m", "distgan", "train", str(config), f"run.dir={run}", *more]
        codes = run_ranks(2, command, log, timeout=90)
    told = output(log, 2)
    assert 5 in codes, told
    assert 0 not in codes
    assert "waiting for data for 1" in told
    assert "longer than run.timeout_sec allows" in told
    assert status(run)["state"] == "failed"
    assert re.search("waiting for data|drawing samples", status(run)["reason"])  # rank 0 begins with the real ones
    assert list((run / "logs").glob("rank_*.stacks.txt"))


@pytest.mark.slow
@pytest.mark.multi
@pytest.mark.timeout(400)
def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """The short form of storm.py; its long one is a matter of --kills."""
    assert storm(tmp_path, kills=3, world=2, seed=int(time.time()))["killed"] == 3


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, as root")
def test_nor_does_one_whose_disk_is_full_now_and_then(tmp_path: Path) -> None:
    with tmpfs(tmp_path) as disk:
        blows = storm(tmp_path, kills=12, world=2, seed=1, disk=disk)
    assert blows["killed"] >= 4
    assert blows["disk full"] >= 2
