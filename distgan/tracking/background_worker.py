"""A fence round what may fail or hang without a run having to stop for it: a thread of its own does it, in order."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from distgan.storage.formatting import one_line

log = logging.getLogger("distgan")


class Fence:
    """Takes jobs and never raises or blocks. After one that fails, or takes too long, it is down: nothing is done.

    Args:
        name: Whose jobs these are, for the one line that tells of a failure.
        limit_sec: How long a job may take before the fence is down. (Its thread cannot be ended; it is left behind.)
    """

    def __init__(self, name: str, limit_sec: float) -> None:
        self._name, self._limit_sec = name, limit_sec
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._now: tuple[str, float] | None = None  # what is done, and since when
        self._lock, self.is_down = threading.Lock(), False
        self.way_out = ""  # what a person can do once it is down
        self._thread = threading.Thread(target=self._work, name=f"distgan-{name}", daemon=True)
        self._thread.start()

    def do(self, what: str, job: Callable[[], None]) -> None:
        """Have a job done, after those before it."""
        now = self._now
        if now is not None and time.monotonic() - now[1] > self._limit_sec:
            self._go_down(f"{now[0]} takes longer than {self._limit_sec:g} s")
        if not self.is_down:
            self._jobs.put((what, job))

    def close(self, limit_sec: float) -> bool:
        """Wait for what is left to be done; whether it was, in so many seconds."""
        self._jobs.put(None)
        self._thread.join(0 if self.is_down else limit_sec)
        now = self._now
        if self._thread.is_alive() and now is not None:
            self._go_down(f"{now[0]} takes longer than {limit_sec:g} s")
        return not self.is_down

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.is_down:
                continue
            self._now = (job[0], time.monotonic())
            try:
                job[1]()
            except Exception as error:  # libraries raise of every kind when their side process or the disk is gone
                self._go_down(f"{job[0]} failed ({one_line(error)})")
            self._now = None

    def _go_down(self, why: str) -> None:
        with self._lock:
            was_down, self.is_down = self.is_down, True
        if not was_down:
            log.warning(f"{self._name}: {why}; continuing without it{self.way_out and f'. {self.way_out}'}")
