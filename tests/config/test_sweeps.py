"""The shipped sweeps: a trial's command line is one that `distgan train` understands."""

from pathlib import Path

import pytest
import yaml
from processes import ROOT

from distgan.cli.main import build_parser
from distgan.config.fields import leaves
from distgan.config.load import load
from distgan.config.schema import Config

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def trial(sweep: dict) -> list[str]:
    """What an agent would run with the first value of each parameter: lists are put in place of `${...}`."""
    chosen = {name: one["values"][0] if "values" in one else one["min"] for name, one in sweep["parameters"].items()}
    filled = {
        "${env}": ["/usr/bin/env"],
        "${program}": [sweep["program"]],
        "${args_no_hyphens}": [f"{name}={value}" for name, value in chosen.items()],
    }
    return [word for part in sweep["command"] for word in filled.get(part, [part])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_trial_is_a_run_of_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_RUN_ID", "x1y2")
    sweep = yaml.safe_load(path.read_text())
    words = trial(sweep)
    assert words[1:5] == ["accelerate", "launch", "-m", "distgan"]
    options, rest = build_parser().parse_known_args(words[5:])
    config = load(options.config, [*options.overrides, *rest, "data.shards=somewhere"])
    assert config.run.dir == "runs/sweep/x1y2"
    assert set(sweep["parameters"]) <= {name for name, _ in leaves(Config)}
    told = dict(leaves(config))
    for name, one in sweep["parameters"].items():
        first = one["values"][0] if "values" in one else one["min"]
        assert told[name] in (first, [first])
