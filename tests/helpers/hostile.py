"""Hostile inputs, each tried within bounds: what a case may take, and what may come of it.

A corpus is a module with `cases(folder, share) -> Iterable[Case]`. `outcomes(corpus, folder)` runs its cases one after
the other in a child process that has imported everything once, and returns what came of each:

    right         it ran, and the case's own checks hold
    refused       one line, with the exit code of its kind
    skipped       what is bad was passed over, and counted (the case returns this word)
    quarantined   likewise, into quarantine.jsonl

and what must not come: `traceback`, `wrong`, `hang`, `cpu`, `memory`, `started` (a process, or a connection to
another host). Such a case is told with its last lines.
"""

import contextlib
import ctypes
import importlib
import io
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from processes import environment, start

T = TypeVar("T")
GOOD = ("right", "refused", "skipped", "quarantined")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
MAKING_SEC = 200  # that a corpus may take to make a case
M_ARENA_MAX = -8  # of mallopt(3)
LOCAL = ("127.0.0.1", "::1", "localhost", "")


@dataclass(frozen=True)
class Case:
    """One hostile input and what reads it.

    Attributes:
        name: Unique in its corpus.
        run: Does it. Returns one of GOOD, or None, which is "right"; raises an error of this package where it is
            refused, and AssertionError where it was read wrongly.
        allowed: What may come of it; "refused 3" allows that exit code alone.
        memory_mb: Of address space, beyond what the process has before.
        cpu_sec, wall_sec: Bounds of time. The second one is generous, since machines may be busy.
        programs: Names of programs that may start, such as git.
    """

    name: str
    run: Callable[[], str | None]
    allowed: tuple[str, ...] = GOOD
    memory_mb: int = 512
    cpu_sec: int = 10
    wall_sec: int = 60
    programs: tuple[str, ...] = ()


class Share:
    """How much of a corpus is tried: all of it, or a part that has every kind of fault and is the same each time."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self._lists = 0

    def of(self, items: Iterable[T], every: int = 4) -> Sequence[T]:
        """All items, or every n-th, from one place further on in each list: another list has what this one lacks."""
        self._lists += 1
        return [item for i, item in enumerate(items) if self.whole or i % every == self._lists % every]


@dataclass(frozen=True)
class Outcome:
    """What came of a case: the word, and for a person the message or the last lines."""

    name: str
    word: str
    text: str = ""
    good: bool = False


class Refused(Exception):
    """A command that ended with an exit code other than 0."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def command(*words: object) -> str:
    """Run a command of this package in this process; returns what it printed on both streams.

    Raises:
        Refused: It ended with another exit code than 0; the message is what stands on stderr from its own name on.
    """
    from distgan.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:
            code = left.code
    if code:
        told = err.getvalue()
        raise Refused(code if isinstance(code, int) else 1, told[max(0, told.find(f"distgan {words[0]}: ")) :])
    return out.getvalue() + err.getvalue()


def outcomes(corpus: str, folder: Path, whole: bool = True) -> list[Outcome]:
    """Run the cases of a corpus, or a share of them, in a child.

    Another one replaces it where it had to be killed.
    """
    found: list[Outcome] = []
    while True:
        more, ended = _outcomes_from(corpus, folder, whole, len(found))
        found += more
        if ended:
            return found


def bad(found: Iterable[Outcome]) -> str:
    """For a person, what must not have come of a case; empty where all is good."""
    return "\n".join(f"{one.name}: {one.word}: {one.text}" for one in found if not one.good)


def _outcomes_from(corpus: str, folder: Path, whole: bool, first: int) -> tuple[list[Outcome], bool]:
    """Outcomes from case `first` on, and whether that was all; not so where the child had to be killed."""
    own = environment(DISTGAN_CACHE=str(folder / "cache"))
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        log, told_by = Path(place, "log"), Path(place, "told")
        os.mkfifo(told_by)
        reader = os.open(told_by, os.O_RDONLY | os.O_NONBLOCK)
        words = [__file__, corpus, str(folder), "whole" if whole else "share", str(first), str(told_by)]
        child = start(words, own, str(log), real=False)

        def last() -> str:
            return log.read_text(errors="replace")[-2000:]

        name, wall_sec = "", MAKING_SEC  # of the case at hand; none while the corpus makes the next one
        told = b""
        try:
            while True:
                while b"\n" in told:
                    line, told = told.split(b"\n", 1)
                    message = json.loads(line)
                    if message.get("done"):
                        return found, True
                    if "begins" in message:
                        name, wall_sec = message["begins"], message["wall_sec"]
                    else:
                        found.append(Outcome(**message))
                        name, wall_sec = "", MAKING_SEC
                if not select.select([reader], [], [], wall_sec)[0]:
                    if not name:
                        raise RuntimeError(f"{corpus}: the next case was not made in {MAKING_SEC} s:\n{last()}")
                    return [*found, Outcome(name, "hang", f"no end in {wall_sec} s")], False
                more = os.read(reader, 65536)
                told += more
                if not more:
                    code = child.wait()
                    if not name:
                        raise RuntimeError(f"{corpus}: the next case could not be made:\n{last()}")
                    word = "cpu" if code == -signal.SIGXCPU else "traceback"
                    return [*found, Outcome(name, word, f"the process ended with {code}: {last()}")], False
        finally:
            os.close(reader)
            child.kill()
            child.wait()


# The child.


def _serve(corpus: str, folder: Path, whole: bool, first: int, told_by: str) -> None:
    tell = open(told_by, "w", buffering=1)  # noqa: SIM115  # to the end; what a library prints goes to the log
    # Each thread's arena would take 64 MB of address space, which has nothing to do with the input.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    started: list[str] = []
    programs = ["*"]  # that may start now
    sys.addaudithook(lambda event, arguments: _watch(event, arguments, started, programs))
    (folder / f"from-{first}").mkdir(parents=True)
    cases = importlib.import_module(corpus).cases(folder / f"from-{first}", Share(whole))
    for number, case in enumerate(cases):
        if number < first:
            continue
        tell.write(json.dumps({"begins": case.name, "wall_sec": case.wall_sec}) + "\n")
        started.clear()
        programs[:] = case.programs
        word, text = _bounded(case)
        programs[:] = ["*"]
        if started:
            word, text = "started", "; ".join(started)
        good = word in case.allowed or word.partition(" ")[0] in case.allowed
        tell.write(json.dumps(asdict(Outcome(case.name, word, text[-2000:], good))) + "\n")
    tell.write('{"done": true}\n')
    tell.flush()
    os._exit(0)


def _watch(event: str, arguments: tuple, started: list[str], programs: list[str]) -> None:
    """Note and keep from happening what no input may start."""
    if event in PROCESSES:
        program = os.path.basename(os.fsdecode(arguments[0])) if arguments and arguments[0] else event
        if "*" in programs or program in programs:
            return
        started.append(f"{event} {arguments!r}"[:300])
        raise RuntimeError(f"{event} is not allowed here")
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in LOCAL:
        started.append(f"{event} {arguments[1]!r}")
        raise RuntimeError(f"{event} is not allowed here")


def _bounded(case: Case) -> tuple[str, str]:
    """Run a case within its bounds; returns the word of its outcome, and a text."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + case.memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1 + case.cpu_sec, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    began = time.process_time()
    try:
        word, text = _judged(case)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    taken = time.process_time() - began
    return (word, text) if taken <= case.cpu_sec else ("cpu", f"{taken:.1f} s of CPU")


def _judged(case: Case) -> tuple[str, str]:
    from distgan.errors import DistganError

    try:
        return case.run() or "right", ""
    except (DistganError, Refused) as error:
        return _refusal(str(error), error.exit_code)
    except AssertionError as error:
        return "wrong", str(error) or traceback.format_exc(limit=-2)
    except MemoryError:
        return "memory", traceback.format_exc(limit=-3)
    except BaseException:
        return "traceback", traceback.format_exc(limit=-4)


def _refusal(text: str, exit_code: int) -> tuple[str, str]:
    """A refusal must be one line that a person can read; only a config's mistakes are a line each."""
    lines = text.splitlines()
    if "Traceback" in text or exit_code not in (2, 3, 4, 5):
        return "traceback", f"exit code {exit_code}: {text}"
    if not lines or (len(lines) > 1 and exit_code != 2):
        return "wrong", f"not one line: {text!r}"
    if long := [line for line in lines if len(line) > 1500]:
        return "wrong", f"a line of {len(long[0])} characters: {long[0][:200]!r} ..."
    if re.fullmatch(r"\W*", lines[-1]):
        return "wrong", f"a message that says nothing: {text!r}"
    return f"refused {exit_code}", text


if __name__ == "__main__":
    sys.modules["hostile"] = sys.modules["__main__"]  # so that the corpus makes cases of this very module
    _serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "whole", int(sys.argv[4]), sys.argv[5])
