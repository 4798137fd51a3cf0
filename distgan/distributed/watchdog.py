"""A watchdog: a rank that hangs ends the run with an error, instead of holding all its machines in silence."""

import logging
import os
import threading
import time
from collections.abc import Callable

from distgan.errors import MachineError

log = logging.getLogger("distgan")

HEARTBEAT_SEC = 60.0  # a phase that takes longer says so, as often as this
ALONE = ("waiting for data", "drawing samples")  # phases in which a rank waits for nobody else
GRACE_SEC = 30.0  # in the others a rank may be waiting for one that hangs, and leaves it the time to speak first


class Watchdog:
    """Watches this rank's phase from a thread of its own, and ends the process where one takes too long.

    Args:
        limit_sec: How long one phase may take.
        report: Takes the error that says which phase hangs, before the process ends with its exit code.
    """

    def __init__(self, limit_sec: float, report: Callable[[MachineError], None]) -> None:
        self._limit_sec, self._report = limit_sec, report
        self._now = ("starting", time.monotonic())
        self._beat = self._began = time.monotonic()  # of the phase: when it was last logged, and its start
        self._over = threading.Event()
        threading.Thread(target=self._run, name="distgan-watch", daemon=True).start()

    def phase(self, name: str) -> None:
        """Begin a phase, named in words that go before "for 600 s, ..."."""
        if name != self._now[0]:
            self._beat = self._began = time.monotonic()
        self._now = (name, time.monotonic())

    def close(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(min(1.0, self._limit_sec / 4)):
            name, since = self._now
            if time.monotonic() - self._beat > HEARTBEAT_SEC:
                self._beat = time.monotonic()
                log.info(f"still {name}, for {self._beat - self._began:.0f} s")
            age_sec = time.monotonic() - since
            if age_sec > self._limit_sec + (0 if name in ALONE else GRACE_SEC):
                self._end(name, age_sec)

    def _end(self, name: str, age_sec: float) -> None:
        error = MachineError(
            f"{name} for {age_sec:.0f} s, longer than run.timeout_sec allows: stopped. The last checkpoint is good; "
            "the same command resumes from there"
        )
        reporter = threading.Thread(target=self._report, args=(error,), daemon=True)
        reporter.start()
        reporter.join(10)  # a file system that hangs must not keep the process
        os._exit(error.exit_code)
