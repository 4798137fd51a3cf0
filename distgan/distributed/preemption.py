"""Requests to stop: signals set a flag, the training loop acts on it.

Imported before torch, so that a signal during the slow start is not lost. USR1 and USR2 are what schedulers send before
a time limit, TERM is preemption or a launcher going down, HUP is a terminal that closes, INT is Ctrl-C.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from distgan.distributed import launch_env
from distgan.errors import StopReason

CHECK_SEC = 0.2
LAUNCHER = "DISTGAN_LAUNCHER"  # its process, in the environment of the ranks
FORCED_EXIT_SEC = 5  # for what is written down before a process ends at once

_reasons: list[StopReason] = []  # a signal handler has nowhere else to put them
_past_reasons: list[StopReason] = []  # those of the run that is over
_on_forced_exit: list[Callable[[], None]] = []
_launchers: list[int] = []  # the process of the launcher that this rank must not outlive


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to stop."""
    always = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT]
    return always if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*always, signal.SIGHUP]


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Let signals ask the run to save and stop, within this context. The second INT says that a third exits at once.

    HUP stays ignored under nohup.

    Where a signal came, the process ignores all but INT from then on: srun sends TERM to the ranks that leave later
    than the first one, and a rank that dies of it loses its exit code. (A handler would not do: Python takes those away
    when it shuts down.)
    """
    _reasons.clear()
    _past_reasons.clear()
    _launchers[:] = [int(os.environ.get(LAUNCHER, os.getppid()))] if "TORCHELASTIC_RUN_ID" in os.environ else []
    before = {number: signal.signal(number, _on_signal) for number in stop_signals()}
    try:
        with _listen_in_a_thread():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # what came while this process started arrives now
            yield
    finally:
        came = bool(set(_reasons) - {StopReason.FINISHED})
        _past_reasons.extend(_reasons)
        _reasons.clear()  # what this process does next was not asked to stop
        _launchers.clear()
        _on_forced_exit.clear()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and number != signal.SIGINT else handler)


@contextlib.contextmanager
def exit_on_signal(waits_for: str) -> Iterator[None]:
    """Let a request end the process, within this context: it may wait in vain, and has nothing to save yet."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(CHECK_SEC):
            if reason := stop_requested():
                os.write(2, f"distgan: asked to stop while waiting for {waits_for}\n".encode())
                os._exit(reason.exit_code)

    watcher = threading.Thread(target=watch, name="distgan-wait", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def call_on_forced_exit(write: Callable[[], None]) -> None:
    """Have `write` called, in a thread, when a third INT ends the process without saving."""
    _on_forced_exit.append(write)


def request_stop(reason: StopReason) -> None:
    """Ask the run to stop, as a signal would."""
    _reasons.append(reason)


def stop_requested() -> StopReason:
    """Return why the run should stop, if it should. The user's Ctrl-C wins.

    Ranks whose launcher was killed are orphans that nobody could stop any more: they are preempted too.
    """
    if _launchers and os.getppid() != _launchers[0]:
        request_stop(StopReason.PREEMPTED)
    if StopReason.INTERRUPTED in _reasons:
        return StopReason.INTERRUPTED
    return _reasons[0] if _reasons else StopReason.NONE


def had_request() -> bool:
    """Return whether a request came to the run that is over."""
    return bool(_past_reasons)


def _on_signal(number: int, frame: object) -> None:
    _record_signal(number)


def _record_signal(number: int) -> None:
    _reasons.append(StopReason.INTERRUPTED if number == signal.SIGINT else StopReason.PREEMPTED)


@contextlib.contextmanager
def _listen_in_a_thread() -> Iterator[None]:
    """Python runs handlers in the main thread, which may be in C, waiting for ranks that hang: a thread hears too."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(read_end,), name="distgan-stop", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)
        listener.join()
        os.close(read_end)


def _listen(read_end: int) -> None:
    is_first, num_ints, has_answered = launch_env.rank() == 0, 0, False
    while byte := os.read(read_end, 1):  # the number of a signal; nothing once the other end is closed
        if signal.getsignal(byte[0]) is _on_signal:
            _record_signal(byte[0])
            if is_first and not has_answered:
                _write_line(f"{signal.Signals(byte[0]).name}: stops after this step")
            has_answered = True
        if byte[0] != signal.SIGINT:
            continue
        num_ints += 1
        if is_first and num_ints == 2:
            _write_line("still saves and stops after this step; a third Ctrl-C ends at once, without saving")
        if num_ints == 3:
            if is_first:
                _write_line("ends at once, without saving; the last checkpoint is good")
            _exit_without_saving()


def _write_line(text: str) -> None:
    """Write to the descriptor itself, since the main thread may hold any lock. The terminal has just written ^C."""
    os.write(2, f"\ndistgan: {text}\n".encode())


def _exit_without_saving() -> None:
    for write in list(_on_forced_exit):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(FORCED_EXIT_SEC)  # a file system that hangs must not keep the process
    os._exit(StopReason.INTERRUPTED.exit_code)
