"""Memory that decoding may take at a time, in all threads of a process, or in all processes of `pack`, together."""

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext

LIMIT = 2**31  # bytes
FREE = 2**25  # what takes less is not counted
_NO_TURN = contextlib.nullcontext()


class MemoryBudget:
    """A number of bytes that is shared: whoever needs more than is left waits.

    What needs more than all of it has its turn when nobody else has any, so that the most that is taken at a time is
    the larger one of the limit and the largest single need.

    Args:
        context: For processes that it starts; None for the threads of this process.
    """

    def __init__(self, limit: int = LIMIT, free: int = FREE, context: BaseContext | None = None) -> None:
        self._limit, self._free = limit, free
        self._changed = context.Condition() if context else threading.Condition()
        self._used = context.Value("q", 0, lock=False) if context else ctypes.c_longlong(0)

    def reserve(self, num_bytes: int) -> contextlib.AbstractContextManager[None]:
        """Wait until so much is left, and keep it from others; not for use within itself."""
        return self._turn(num_bytes) if num_bytes > self._free else _NO_TURN

    @contextlib.contextmanager
    def _turn(self, num_bytes: int) -> Iterator[None]:
        with self._changed:
            while self._used.value and self._used.value + num_bytes > self._limit:
                self._changed.wait()
            self._used.value += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._used.value -= num_bytes
                self._changed.notify_all()
