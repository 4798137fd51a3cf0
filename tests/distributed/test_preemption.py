"""Signals ask a run to save and stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import environment, free_port, output, ranks
from runs import make_digits, status, write_config

from distgan.cli.main import main
from distgan.data import index_cache
from distgan.data.dataset import Dataset
from distgan.data.shard_urls import find_shards
from distgan.distributed.preemption import handle_signals, stop_requested
from distgan.errors import StopReason
from distgan.storage.byte_ranges import ByteRangeReader

SIGNALS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
BUSY = """
import hashlib, signal, sys
signal.signal(signal.SIGHUP, signal.{hangup})
from distgan.cli.main import main
from distgan.data import shard_index as index
from distgan.data.dataset import Dataset
from distgan.data.shard_urls import find_shards
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.distributed.preemption import stop_requested, handle_signals
with handle_signals():
    print("ready", flush=True)
    {then}
"""
FOR_EVER = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)'  # in C, as when waiting for ranks that hang
A_LINE = "sys.stdin.readline(); print(stop_requested().word, flush=True)"


@contextmanager
def listener(then: str, hangup: str = "SIG_DFL", stderr: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen]:
    """A process that listens to signals and then does something else; SIG_IGN is what nohup makes of HUP."""
    command = [sys.executable, "-c", BUSY.format(then=then, hangup=hangup)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    with subprocess.Popen(command, **pipes, text=True, env=environment()) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks(number: signal.Signals) -> None:
    with handle_signals():
        assert stop_requested() == StopReason.NONE
        os.kill(os.getpid(), number)
        assert stop_requested() == (StopReason.INTERRUPTED if number == signal.SIGINT else StopReason.PREEMPTED)
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # sent again, it must not change the code


def test_without_a_signal_all_is_as_before() -> None:
    with handle_signals():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.default_int_handler] * len(SIGNALS)


def test_a_person_wins_over_a_scheduler() -> None:
    with handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested() == StopReason.INTERRUPTED


def test_only_a_third_interrupt_leaves_at_once_and_the_second_one_says_so(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    register = "from distgan.distributed import preemption; "
    register += f"preemption.call_on_forced_exit(lambda: open({str(mark)!r}, 'w').close()); "
    with listener(register + FOR_EVER, stderr=subprocess.PIPE) as process:
        for number, told in (
            (signal.SIGINT, "distgan: SIGINT: stops after this step"),
            (signal.SIGTERM, None),
            (signal.SIGINT, "a third Ctrl-C ends at once, without saving"),
            (signal.SIGINT, "ends at once, without saving; the last checkpoint is good"),
        ):
            assert process.poll() is None and not mark.exists()
            process.send_signal(number)
            if told:
                assert process.stderr.readline() == "\n"
                assert told in process.stderr.readline()
        assert process.wait(30) == StopReason.INTERRUPTED.exit_code
        assert mark.exists()


def test_what_hangs_while_leaving_does_not_keep_the_process() -> None:
    hangs = "import time; from distgan.distributed import preemption; preemption.FORCED_EXIT_SEC = 0.2"
    register = f"{hangs}; preemption.call_on_forced_exit(lambda: time.sleep(600)); "
    with listener(register + FOR_EVER) as process:
        while process.poll() is None:  # where the machine is busy, several signals may come as one
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.returncode == StopReason.INTERRUPTED.exit_code


@pytest.mark.parametrize(("hangup", "told"), [("SIG_DFL", "preempted"), ("SIG_IGN", "none")])
def test_a_terminal_that_closes_asks_but_not_under_nohup(hangup: str, told: str) -> None:
    with listener(A_LINE, hangup) as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate("\n", timeout=5)[0] == f"{told}\n"


@pytest.mark.multi
def test_a_rank_that_waits_for_the_others_can_be_stopped(tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yaml", tmp_path)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    more = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **place}
    command = ["-m", "distgan", "train", str(config), f"run.dir={tmp_path / 'run'}"]
    with ranks(1, command, tmp_path / "log", **more) as (rank,):
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(timeout=5)
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(90) == 75
    assert "while waiting for the other ranks" in output(tmp_path / "log")


def test_a_stop_while_shards_are_indexed_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards without an index take longer than a scheduler waits; the indexes made until then are kept."""
    shards, run = make_digits(tmp_path / "digits", shard_mb=0.1), tmp_path / "run"
    config = write_config(tmp_path / "a.yaml", shards, more=f"run: {{dir: {run}}}\nwandb: {{mode: disabled}}\n")
    original, opened = index_cache.summary, []

    def summary(url: str, *others: object) -> dict:
        opened.append(url)
        if len(opened) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            while not stop_requested():  # the main thread hears it
                time.sleep(0.01)
        return original(url, *others)

    monkeypatch.setattr(index_cache, "summary", summary)
    assert main(["train", str(config)]) == 75
    assert len(opened) == 2 < len(list(shards.glob("*.tar")))
    assert status(run)["state"] == "preempted"
    monkeypatch.undo()
    assert (
        Dataset(find_shards(str(shards)), ByteRangeReader()).num_samples == 1797
    )  # what comes afterwards was not asked


def test_a_signal_is_answered_at_once() -> None:
    """A step may take half a minute, and a person wants to know that they were heard."""
    with listener(FOR_EVER, stderr=subprocess.PIPE) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline() == "distgan: SIGINT: stops after this step\n"


def test_reasons_have_the_words_and_exit_codes_that_scripts_rely_on() -> None:
    found = {reason.word: reason.exit_code for reason in StopReason if reason}
    assert found == {"finished": 0, "preempted": 75, "interrupted": 130}
    assert max(StopReason) == StopReason.INTERRUPTED  # where ranks differ, the user's Ctrl-C wins
