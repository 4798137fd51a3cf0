"""Ranks leave their process group without waiting for one another's freed memory."""

from pathlib import Path

from processes import WORKERS, output, run_ranks


def test_a_module_in_ddp_that_outlives_the_group_waits_for_no_thread_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_ranks(2, [str(WORKERS / "ranks_leave.py")], log, timeout=60) == [0, 0], output(log, 2)
