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


def add_plugin_argument(parser: Parser) -> None:
    """Add --plugin."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="Python code with parts of your own (docs/plugins.md), which runs; may be given several times",
    )


def load_plugins(options: argparse.Namespace) -> None:
    """Load what --plugin names, for a command that reads no config of its own."""
    if options.plugin:
        from distgan.config.plugins import load_plugins

        load_plugins((name, None) for name in options.plugin)


def add_config_arguments(parser: Parser) -> None:
    """Add CONFIG, the overrides behind it, and --plugin."""
    add_plugin_argument(parser)
    parser.add_argument("config", help="YAML file or run folder")
    about = "settings that override the file's"
    # Where an argument is missing, argparse would name this one too if it had no default.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=about)
