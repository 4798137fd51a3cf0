"""`accelerate launch` for `distgan train`, in a way that signals and exit codes arrive:

    python -m distgan.distributed.launch FLAGS_OF_ACCELERATE -m distgan train CONFIG [key=value ...]

The launcher of torch below it takes the first signal as the order to kill every rank 30 s later, passes no second one
on, and turns every exit code of a rank into 1, under a traceback of its own.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Collection

import psutil

from distgan.distributed.preemption import LAUNCHER, stop_signals
from distgan.errors import MachineError, StopReason, with_hint
from distgan.storage.printable import open_streams, public_line


def main() -> int:
    """Start the ranks of this machine and wait for them; returns the code of the first one that did not end with 0."""
    open_streams()
    numbers = stop_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # ranks inherit it: they lose no signal before they listen
    threading.Thread(target=_pass_on, args=(numbers,), name="distgan-launch", daemon=True).start()
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # all that is left to torch
    # What `debug: true` in a default_config.yaml sets: failures would end with 0.
    os.environ.pop("ACCELERATE_ENABLE_RICH", None)

    from accelerate.commands import launch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_is_news)
    try:
        launch.main()
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        _say(f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}")
        return 128 - failure.exitcode
    except SignalException as ended:
        return 128 + ended.sigval
    except (DistError, ConnectionError) as error:
        _say(f"the launchers of this run could not meet: {with_hint(str(error), among_ranks=True)}")
        return MachineError.exit_code
    return 0


def _pass_on(numbers: Collection[signal.Signals]) -> None:
    while True:
        number = signal.sigwait(numbers)
        ranks = [process for process in psutil.Process().children() if _leads_a_session(process.pid)]
        if not ranks:
            _say(f"{signal.Signals(number).name}: no rank runs, nothing to save")
            reason = StopReason.INTERRUPTED if number == signal.SIGINT else StopReason.PREEMPTED
            os._exit(reason.exit_code)  # main may wait in C
        for process in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _leads_a_session(process: int) -> bool:
    """Return whether a child is a rank: torch gives each a session of its own, out of reach of a terminal's Ctrl-C."""
    try:
        return os.getsid(process) == process
    except ProcessLookupError:
        return False


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of torch says more than the ranks do: each reports its own end."""
    return not str(record.msg).startswith(("failed (exitcode", "Sending process"))


def _say(text: str) -> None:
    os.write(2, f"\ndistgan: {public_line(text)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
