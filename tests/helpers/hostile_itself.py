"""A corpus of what must not come of an input, so that the harness is known to see it."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from hostile import Case, Share, command

from distgan.errors import DataError


def cases(folder: Path, share: Share) -> Iterator[Case]:
    """Each is named by the word that it must be given, before a dash."""
    yield Case("right", lambda: None)
    yield Case("skipped", lambda: "skipped")
    yield Case("refused 3", lambda: _raise(DataError("x.tar: corrupt")))
    yield Case("refused 2", lambda: command("train"))
    yield Case("refused 2 - in a command", lambda: command("config", folder / "none.yaml"))
    yield Case("wrong - an empty message", lambda: _raise(DataError("")))
    yield Case("wrong - two lines", lambda: _raise(DataError("x\ny")))
    yield Case("wrong - a check", lambda: _raise(AssertionError("1 is not 2")))
    yield Case("traceback", lambda: _raise(KeyError("field")))
    yield Case("traceback - a way out", lambda: _raise(SystemExit(0)))
    yield Case("memory", lambda: bytearray(2**30) and None, memory_mb=256)
    yield Case("cpu", lambda: _burn(2.5), cpu_sec=1)
    yield Case("started - a process", lambda: subprocess.run(["true"]) and None)
    yield Case("started - caught", _caught)
    yield Case("started - a connection", lambda: socket.create_connection(("192.0.2.1", 80)) and None)
    yield Case("right - a program that may", lambda: subprocess.run(["true"]) and None, programs=("true",))
    yield Case("hang", lambda: time.sleep(60), wall_sec=1)
    yield Case("cpu - in one call", lambda: pow(7, 10**9) and None, cpu_sec=1, memory_mb=4096)
    yield Case("right - after a kill", lambda: None)


def _raise(error: BaseException) -> None:
    raise error


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _caught() -> None:
    try:
        subprocess.run(["true"])
    except Exception:
        return
