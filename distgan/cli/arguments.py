"""Parse arguments: the parser and the options that several commands share."""

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from distgan.storage.printable import printable

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Body: TypeAlias = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """A parser that shows arguments in its messages as text; `commands` are the names of those it knows."""

    commands: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def add_command(commands: Commands, name: str, body: Body, help: str, *examples: str) -> Parser:
    """Add a command; returns its parser.

    Args:
        body: Runs the command, and imports what it needs itself, so that a typo is reported without waiting for torch.
        examples: Command lines that its help ends with.
    """
    epilog = "\n  ".join([f"example{'s' if len(examples) > 1 else ''}:", *examples])
    verbatim = argparse.RawDescriptionHelpFormatter  # which leaves the examples' lines as they are
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=verbatim)
    parser.set_defaults(body=body)
    return parser


def add_config_arguments(parser: Parser) -> None:
    """Add CONFIG and the overrides behind it."""
    parser.add_argument("config", help="YAML file or run folder")
    about = "settings that override the file's"
    # Where an argument is missing, argparse would name this one too if it had no default.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=about)
