"""Work that may fail or hang without stopping the run: a thread of its own does it, in order."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from distgan.storage.formatting import one_line

log = logging.getLogger("distgan")


class BackgroundWorker:
    """Run jobs in a thread; never raise or block. After a job that fails or takes too long, no further one is run.

    Args:
        name: Whose jobs these are, for the one line that reports a failure.
        limit_sec: How long a job may take. (The thread of one that takes longer cannot be ended; it is left behind.)
    """

    def __init__(self, name: str, limit_sec: float) -> None:
        self._name, self._limit_sec = name, limit_sec
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._now: tuple[str, float] | None = None  # the job at work, and since when
        self._lock, self.failed = threading.Lock(), False
        self.hint = ""  # what the user can do after a failure
        self._thread = threading.Thread(target=self._work, name=f"distgan-{name}", daemon=True)
        self._thread.start()

    def submit(self, what: str, job: Callable[[], None]) -> None:
        """Queue a job."""
        now = self._now
        if now is not None and time.monotonic() - now[1] > self._limit_sec:
            self._fail(f"{now[0]} takes longer than {self._limit_sec:g} s")
        if not self.failed:
            self._jobs.put((what, job))

    def close(self, limit_sec: float) -> bool:
        """Wait for the jobs left, for `limit_sec` at most. Returns whether all were done."""
        self._jobs.put(None)
        self._thread.join(0 if self.failed else limit_sec)
        now = self._now
        if self._thread.is_alive() and now is not None:
            self._fail(f"{now[0]} takes longer than {limit_sec:g} s")
        return not self.failed

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self.failed:
                continue
            self._now = (job[0], time.monotonic())
            try:
                job[1]()
            except Exception as error:  # libraries raise of every kind when their side process or the disk is gone
                self._fail(f"{job[0]} failed ({one_line(error)})")
            self._now = None

    def _fail(self, why: str) -> None:
        with self._lock:
            was_down, self.failed = self.failed, True
        if not was_down:
            log.warning(f"{self._name}: {why}; continuing without it{self.hint and f'. {self.hint}'}")
