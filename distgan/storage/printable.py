"""Text on its way to a terminal, a log or a message: what comes from outside gives no orders there and forges no line.

Names of files, classes, samples and shards, fields of cards, words of servers and messages of libraries hold whatever
somebody else has chosen. They go into messages as they are; what shows a message passes it through here, a line at a
time, so only a line break of our own making is one.
"""

import sys
from typing import TextIO

from distgan.storage.urls import public_text


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
    """Print lines, by default to stdout, each made printable."""
    print(*map(printable, lines), sep="\n", file=file or sys.stdout, flush=True)
