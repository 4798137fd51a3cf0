"""Requests to stop: signals set a flag, the training loop acts on it.

Imported before torch, so that a signal during the slow start is not lost. USR1 and USR2 are what schedulers send before
a time limit, TERM is preemption or a launcher going down, HUP is a terminal that closes, INT is a person.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from distgan.distributed import launch_env

EXIT_CODES = {"finished": 0, "preempted": 75, "interrupted": 130}  # 75: EX_TEMPFAIL, try again later
LOOK_SEC = 0.2
LAUNCHER = "DISTGAN_LAUNCHER"  # its process, in the environment of the ranks
LEAVING_SEC = 5  # for what is written down before a process ends at once

_requests: list[str] = []  # a signal handler has nowhere else to put them
_heard: list[str] = []  # those of the run that is over
_before_leaving: list[Callable[[], None]] = []
_launchers: list[int] = []  # the process of the launcher that this rank must not outlive


def requests() -> list[signal.Signals]:
    """The signals that ask a run to stop."""
    always = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT]
    return always if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*always, signal.SIGHUP]


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Meanwhile, signals ask the run to save and stop. A third INT leaves at once, which the second one tells.

    HUP stays ignored under nohup.

    Where a signal came, the process ignores all but INT from then on: srun sends TERM to the ranks that leave later
    than the first one, and a rank that dies of it loses its exit code. (A handler would not do: Python takes those away
    when it shuts down.)
    """
    _requests.clear()
    _heard.clear()
    _launchers[:] = [int(os.environ.get(LAUNCHER, os.getppid()))] if "TORCHELASTIC_RUN_ID" in os.environ else []
    before = {number: signal.signal(number, _on_signal) for number in requests()}
    try:
        with _hearing_in_a_thread():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # what came while this process started arrives now
            yield
    finally:
        came = bool(set(_requests) - {"finished"})
        _heard.extend(_requests)
        _requests.clear()  # what this process does next was not asked to stop
        _launchers.clear()
        _before_leaving.clear()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and number != signal.SIGINT else handler)


@contextlib.contextmanager
def leaving_when_asked(waits_for: str) -> Iterator[None]:
    """Meanwhile, a request ends the process: it may wait in vain, and has nothing to save yet."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_SEC):
            if reason := asked():
                os.write(2, f"distgan: asked to stop while waiting for {waits_for}\n".encode())
                os._exit(EXIT_CODES[reason])

    watcher = threading.Thread(target=watch, name="distgan-wait", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def before_leaving(write: Callable[[], None]) -> None:
    """Have `write` called, in a thread, when a third INT ends the process without saving."""
    _before_leaving.append(write)


def ask(reason: str) -> None:
    """Ask the run to stop, as a signal would; `reason` is a key of EXIT_CODES."""
    _requests.append(reason)


def asked() -> str:
    """Why the run should stop: a key of EXIT_CODES, or empty. A person's wish wins.

    Ranks whose launcher was killed are orphans that nobody could stop any more: they are preempted too.
    """
    if _launchers and os.getppid() != _launchers[0]:
        ask("preempted")
    return "interrupted" if "interrupted" in _requests else _requests[0] if _requests else ""


def was_asked() -> bool:
    """Whether a request came to the run that is over."""
    return bool(_heard)


def _on_signal(number: int, frame: object) -> None:
    _note(number)


def _note(number: int) -> None:
    _requests.append("interrupted" if number == signal.SIGINT else "preempted")


@contextlib.contextmanager
def _hearing_in_a_thread() -> Iterator[None]:
    """Python runs handlers in the main thread, which may be in C, waiting for ranks that hang: a thread hears too."""
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    before = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    listener = threading.Thread(target=_hear, args=(hears,), name="distgan-stop", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tells)
        listener.join()
        os.close(hears)


def _hear(hears: int) -> None:
    is_first, num_ints, told = launch_env.rank() == 0, 0, False
    while byte := os.read(hears, 1):  # the number of a signal; nothing once the other end is closed
        if signal.getsignal(byte[0]) is _on_signal:
            _note(byte[0])
            if is_first and not told:
                _say(f"{signal.Signals(byte[0]).name}: stops after this step")
            told = True
        if byte[0] != signal.SIGINT:
            continue
        num_ints += 1
        if is_first and num_ints == 2:
            _say("still saves and stops after this step; a third Ctrl-C ends at once, without saving")
        if num_ints == 3:
            if is_first:
                _say("ends at once, without saving; the last checkpoint is good")
            _leave()


def _say(text: str) -> None:
    """Straight to the descriptor, since the main thread may hold any lock. The terminal has just written ^C."""
    os.write(2, f"\ndistgan: {text}\n".encode())


def _leave() -> None:
    for write in list(_before_leaving):
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(LEAVING_SEC)  # a file system that hangs must not keep the process
    os._exit(EXIT_CODES["interrupted"])
