"""The entry point: run a command, and turn errors into one line and an exit code."""

import argparse
import difflib
import io
import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from distgan.cli import data, generator, tools, training
from distgan.cli.arguments import Parser
from distgan.cli.process import written
from distgan.config.renamed import RENAMED_OPTIONS
from distgan.distributed.launch_env import rank
from distgan.distributed.preemption import had_request
from distgan.errors import DistganError, MachineError, out_of_memory
from distgan.storage.printable import let_go_of_stderr, open_streams, public_line, show
from distgan.tracking.console import Lines, traceback_lines
from distgan.version import __version__

RANK_0_SPEAKS_SEC = 10  # a launcher ends all ranks once one is gone: the others leave rank 0 the time to say why
GPU_FULL = "nvidia-smi shows who has it; CUDA_VISIBLE_DEVICES=N takes another GPU, and an empty one the CPU"
HOST_FULL = "`top` shows who has it; end other programs, or request more for the job (SLURM: --mem)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    open_streams()
    sys.excepthook = _show_error
    if logging.lastResort is not None:  # which shows warnings where a command has set up no log
        logging.lastResort.setFormatter(Lines())
    try:
        return written(_run(arguments))
    except SystemExit as done:  # argparse's, after --help or a mistake
        raise SystemExit(written(int(done.code or 0))) from None
    finally:
        let_go_of_stderr()


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an unexpected error as text, in place of Python's own traceback."""
    show(f"distgan: {kind.__name__}, which was not expected", *traceback_lines(error), file=sys.stderr)


def build_parser() -> Parser:
    """Return the parser of all commands; `options.command` names the one that was chosen, `options.body` runs it."""
    parser = Parser(prog="distgan", description="Train GANs on streamed image shards.")
    parser.add_argument("--version", action="version", version=f"distgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (data, training, generator, tools):
        group.add_commands(commands)
    parser.commands = tuple(commands.choices)
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    options = _parse(words)
    try:
        return options.body(options) or 0
    except DistganError as error:
        if error.rank is None and rank() > 0:
            time.sleep(RANK_0_SPEAKS_SEC)  # whoever is still there then has an error that rank 0 has not
            if had_request():  # the launcher asked this rank to leave, since rank 0 has the same error
                return error.exit_code
        who = error.rank if error.rank is not None else rank()
        named = f"rank {who}: " if error.rank is not None or who > 0 else ""
        first, *others = (public_line(line, *words) for line in error.lines)
        show(f"distgan {options.command}: {named}{first}", *others, file=sys.stderr)
        return error.exit_code
    except (RuntimeError, MemoryError) as error:  # torch's, and NumPy's
        if (memory := out_of_memory(str(error))) is None:
            raise
        show(f"distgan {options.command}: {memory.line}: {GPU_FULL if memory.on_gpu else HOST_FULL}", file=sys.stderr)
        return MachineError.exit_code
    except KeyboardInterrupt:
        show(f"distgan {options.command}: interrupted", file=sys.stderr)
        return 130


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    if words and not words[0].startswith("-") and words[0] not in parser.commands:
        near = difflib.get_close_matches(words[0], parser.commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(parser.commands)}"
        parser.error(f"{words[0]!r} is not a command: {hint}")
    for word in words[1:]:
        option = word.partition("=")[0]
        if new := RENAMED_OPTIONS.get((words[0], option)):
            parser.error(f"{option}: did you mean {new}?")
    options, rest = parser.parse_known_args(words)
    if rest and not hasattr(options, "overrides"):
        parser.error(f"unknown: {' '.join(rest)}; see `distgan {options.command} --help`")
    if rest:  # overrides behind an option: argparse takes only the first run of positional arguments
        options.overrides = [*options.overrides, *rest]
    return options
