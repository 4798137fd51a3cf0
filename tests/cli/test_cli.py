"""The commands' own help."""

import argparse
import shlex
from collections.abc import Iterator

import pytest

from distgan.cli.main import build_parser, main


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._subparsers._group_actions
    return actions[0].choices


def examples(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Words behind `distgan` of each example in a command's help."""
    for line in parser.epilog.splitlines()[1:]:
        words = shlex.split(line)
        words = words[: words.index(">")] if ">" in words else words
        yield words[words.index("distgan") + 1 :]


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command_ends_with_examples_that_it_understands(
    command: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    found = list(examples(commands()[command]))
    assert found, f"give add_command(commands, {command!r}, ...) an example"
    for words in found:
        assert words[-1] in told
        options, rest = build_parser().parse_known_args(words)
        assert options.command == command
        assert all("=" in word for word in rest)  # overrides behind an option


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["pack", "a", "b", "--resolutoin", "3"]])
def test_a_wrong_command_line_is_told_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "distgan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian", "a.yaml"], "'trian' is not a command: did you mean train?"),
        (["xyz"], "'xyz' is not a command: there are pack, index, train, check"),
        (["train"], "the following arguments are required: config\n"),
        (["check"], "the following arguments are required: config\n"),
        ([], "the following arguments are required: COMMAND\n"),
    ],
)
def test_what_is_misspelt_or_missing_is_named(arguments: list[str], told: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err


def test_a_config_needs_no_overrides() -> None:
    assert build_parser().parse_args(["train", "a.yaml"]).overrides == []
    assert build_parser().parse_args(["train", "a.yaml", "x=1", "y=2"]).overrides == ["x=1", "y=2"]
