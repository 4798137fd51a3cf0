"""The process of a command: where its messages go, and the exit code with which it ends."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

from distgan.distributed.launch_env import rank
from distgan.errors import MachineError
from distgan.storage.printable import flush_stdout, show
from distgan.tracking.console import Lines


@contextlib.contextmanager
def term_interrupts() -> Iterator[None]:
    """Meanwhile, have SIGTERM end a command as Ctrl-C does, so that it removes what is half done."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def log_to_stderr() -> None:
    """Send what the package logs to stderr, in plain lines; ranks other than 0 send their warnings only."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("distgan").setLevel(logging.INFO if rank() == 0 else logging.WARNING)


def written(code: int) -> int:
    """Return the exit code of a finished command: another one where stdout did not receive all of its output."""
    if not (reason := flush_stdout()):
        return code
    show(f"distgan: stdout: {reason}: not all was written there; the work itself is done", file=sys.stderr)
    return code or MachineError.exit_code


def leave(code: int, world: int) -> int:
    """End the process of one of several ranks at once, with everything written; of a single one, by returning."""
    if world > 1:
        # While Python shuts down, threads of torch.distributed that ask for it may abort the process.
        code = written(code)
        sys.stderr.flush()
        os._exit(code)
    return code
