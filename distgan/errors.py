"""Errors for users, by exit code. A message says what is wrong, where, and how to fix it."""

import re
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

OTHERS_END = "onnection"  # what libraries say where another rank is gone
OUT_OF_MEMORY = (  # the words of torch and NumPy
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Unable to allocate",
)
HINTS = (
    ("no kernel image", "this torch has no code for this GPU: install one that has; `distgan doctor` names both"),
    ("Too many open files", "raise the limit, e.g. by `ulimit -n 65536`"),
)
HINTS_AMONG_RANKS = (
    ("EADDRINUSE", "that port is taken: set another MASTER_PORT, the same for all ranks"),
    ("another process is utilizing it", "set another MASTER_PORT, the same on all machines"),
    ("client socket has timed out", "is that address rank 0's, seen from here, and has rank 0 started?"),
    ("clients joined", "start the others too, with the same MASTER_ADDR and MASTER_PORT"),
    (OTHERS_END, "another rank is gone: its own message says why"),
    ("NCCL error", "set NCCL_DEBUG=INFO to see why, and see docs/scale.md for the variables of a network"),
)


class DistganError(Exception):
    """Base of the errors whose message is enough: the command line prints it without a traceback.

    Most errors occur on all ranks alike, and rank 0 reports them; one of a single rank knows its rank.
    """

    exit_code = 1
    rank: int | None = None

    def __init__(self, text: str, *details: str) -> None:
        """`details`, where there are several, are lines of their own below the text."""
        super().__init__("\n  ".join([text, *details]))
        self.lines = [text, *(f"  {line}" for line in details)]

    def on_rank(self, rank: int) -> "DistganError":
        self.rank = rank
        return self


class ConfigError(DistganError):
    """A config, command line or batch plan that cannot run. Raised before a process group or GPU is touched."""

    exit_code = 2


class DataError(DistganError):
    """Shards, indexes or images that cannot be used as asked."""

    exit_code = 3


class DivergedError(DistganError):
    """Training produced a value that is not finite."""

    exit_code = 4


class MachineError(DistganError):
    """The machine prevents the run: disk full, a folder in use, ranks that are not what the launcher promised."""

    exit_code = 5


class StopReason(IntEnum):
    """The reason why a run stops; where ranks differ, the greater one wins."""

    NONE = 0  # it continues
    FINISHED = 1
    PREEMPTED = 2
    INTERRUPTED = 3

    @property
    def word(self) -> str:
        """Return the reason as status.json, the log and W&B have it."""
        return self.name.lower()

    @property
    def exit_code(self) -> int:
        """Return the exit code of a process that stops for it; 75 is EX_TEMPFAIL: try again later."""
        return {"FINISHED": 0, "PREEMPTED": 75, "INTERRUPTED": 130}[self.name]


class StoppedError(DistganError):
    """A request to stop that came before there was anything to save."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(f"{reason.word} before the first step: nothing to save")
        self.reason = reason


def of_kind(kind: str, text: str) -> DistganError:
    """Return another rank's error, from the name of its class and its message."""
    kinds = {cls.__name__: cls for cls in DistganError.__subclasses__()}
    return kinds[kind](text) if kind in kinds else MachineError(f"{kind}: {text}")


def with_hint(text: str, among_ranks: bool = False) -> str:
    """Return a message of the system or a library, with the fix where it is known.

    Args:
        among_ranks: Whether it may be about the ranks' own connections.
    """
    hints = (*HINTS, *HINTS_AMONG_RANKS) if among_ranks else HINTS
    hint = next((f" ({hint})" for mark, hint in hints if mark in text), "")
    return text[:300] + hint


class OutOfMemory(NamedTuple):
    """Memory that ran out: a line with figures, and whether it was a GPU's and not the machine's."""

    line: str
    on_gpu: bool


def out_of_memory(text: str) -> OutOfMemory | None:
    """Return what an error of torch or NumPy says about memory that ran out; None for other errors."""
    if not any(mark in text for mark in OUT_OF_MEMORY):
        return None
    asked = re.search(r"(?:tried|unable) to allocate ([\d.]+ \w+)", text, re.IGNORECASE)
    gpu = re.search(r"GPU (\d+) has a total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text)
    on_gpu = gpu is not None or "CUDA" in text or "CUBLAS" in text
    where = f"GPU {gpu[1]}" if gpu else "the GPU" if on_gpu else "the machine"
    figures = [f"{asked[1]} asked"] if asked else []
    figures += [f"{gpu[3]} of {gpu[2]} free"] if gpu else []
    return OutOfMemory(f"{where} is out of memory" + (f" ({', '.join(figures)})" if figures else ""), on_gpu)


class FailedError(DistganError):
    """Any other error that ended a run; the traceback is in the rank's log."""

    @classmethod
    def of(cls, error: Exception, rank: int, folder: Path, less_memory: str) -> DistganError:
        """Wrap an unexpected error of a rank.

        Args:
            less_memory: Which setting makes its networks need less memory.
        """
        text = " ".join(str(error).split())
        file = "log.txt" if rank == 0 else f"logs/rank_{rank:05d}.txt"
        if memory := out_of_memory(text):
            return MachineError(f"{memory.line}: {less_memory}; traceback in {folder / file}").on_rank(rank)
        kind = MachineError if isinstance(error, OSError) or OTHERS_END in text else cls
        return kind(f"{type(error).__name__}: {with_hint(text, True)}; traceback in {folder / file}").on_rank(rank)
