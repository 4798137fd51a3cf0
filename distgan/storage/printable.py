"""Text on its way to a terminal, a log or a message: what comes from outside gives no orders there and forges no line.

Names of files, classes, samples and shards, fields of cards, words of servers and messages of libraries hold whatever
somebody else has chosen. They go into messages as they are; what shows a message passes it through here, a line at a
time, so only a line break of our own making is one.
"""

import contextlib
import os
import sys
from typing import TextIO

from distgan.storage.urls import public_text

_failures: list[OSError] = []  # of what was written to stdout, as Python forgets them


def printable(text: str) -> str:
    """Return a text as one line that a terminal only shows.

    What is not printable, as `str.isprintable` has it, is written as a string of Python would be: control characters,
    line breaks, marks of direction, other separators, bytes of a name that are no text. A tab becomes a space.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c == "\t" else ascii(c)[1:-1] for c in text)


def public_line(text: str, *urls: str) -> str:
    """Return a message as one line to be shown or kept: printable, and without secrets of addresses."""
    return public_text(printable(public_text(text, *urls)))


def show(*lines: str, file: TextIO | None = None) -> None:
    """Print lines, by default to stdout, each made printable. Nobody's work ends because they cannot be written."""
    try:
        print(*map(printable, lines), sep="\n", file=file or sys.stdout, flush=True)
    except OSError as error:
        if file is None:
            _failures.append(error)


def open_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) empty ones.

    Called before files are opened, since one of them would take their place and get what is written to it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets this number, the lowest one that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def flush_stdout() -> str:
    """Write what is left for stdout; returns the error, or "" where there is none or the reader left (`| head`)."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _failures.append(error)
    if not _failures:
        return ""
    reasons = [error.strerror or str(error) for error in _failures if not isinstance(error, BrokenPipeError)]
    _failures.clear()
    with contextlib.suppress(OSError):  # Python tries again when it ends, and would change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return reasons[0] if reasons else ""


def let_go_of_stderr() -> None:
    """Give up what a full stderr did not take: Python would try again when it ends, and change the exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
