"""Records of runs, whatever state they are in; and which of their curves are shown."""

import json
import math
from pathlib import Path

import pytest
from made_runs import jsonl, make_run, rows

from distgan.config.renamed import RENAMED_LOG_KEYS
from distgan.errors import ConfigError
from distgan.metrics.names import better
from distgan.tools.report.curves import panels, thinned
from distgan.tools.report.groups import group
from distgan.tools.report.history import Series, read


def test_numbers_by_thousands_of_images(tmp_path: Path) -> None:
    run = read(make_run(tmp_path / "r", rows(3)))
    assert run.series("Loss/D") == Series([1.0, 2.0, 3.0], [1.0, 1 / 2, 1 / 3])
    assert run.last("Logits/real_minus_fake") == 3
    assert run.problems == []


def test_a_half_written_line_is_told_and_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", rows(5))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"Progress/images": 6000, "Loss/D')
    run = read(folder)
    assert len(run.rows) == 5
    assert run.problems == [
        f"{folder}/metrics.jsonl: its last line is half written (the run is live, or was killed): skipped"
    ]


def test_lines_of_other_versions_and_damage(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", rows(2))
    lines = [
        '{"Progress/kimg": 3.0, "Loss/D": 0.25, "Own/note": "text", "Own/list": [1]}\n',  # no Progress/images
        '{"images": 4000}\n',
        "\n",
        "[1, 2]\n",
        '{"Progress/images": 5000, "Loss/D": NaN, "Loss/G": Infinity}\n',
        "\x00\x00\xff\n",
        '{"Progress/images": 1' + "0" * 400 + "}\n",
        "[" * 100_000 + "\n",
    ]
    with open(folder / "metrics.jsonl", "a", errors="surrogateescape") as file:
        file.writelines(lines)
    run = read(folder)
    assert run.series("Loss/D") == Series([1.0, 2.0, 3.0], [1.0, 0.5, 0.25])  # a NaN is no point of a curve
    assert "Own/note" not in run.log_keys()
    assert len(run.problems) == 1
    assert "line 4 and 4 more cannot be read, or lacks Progress/images" in run.problems[0]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("x")
    run = read(tmp_path)
    assert (run.rows, run.evals, run.status, run.problems) == ([], [], {}, [])
    (tmp_path / "status.json").write_text('{"state"')
    (tmp_path / "evals.jsonl").mkdir()
    problems = read(tmp_path).problems
    assert len(problems) == 2
    assert all(any(f"{name}: " in line for line in problems) for name in ("status.json", "evals.jsonl"))


@pytest.mark.parametrize(("name", "told"), [("nothing", "no such run folder"), ("", "is not a run folder")])
def test_what_is_no_run(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path / name)


def test_evaluations_stand_before_metrics_of_the_same_name(tmp_path: Path) -> None:
    evals = [{"Progress/images": 9000, "Metrics/kid": 0.1}]
    run = read(make_run(tmp_path / "r", rows(2, Metrics_kid=5.0), evals=evals))
    assert run.series("Metrics/kid") == Series([9.0], [0.1])


def test_panels_hold_what_there_is(tmp_path: Path) -> None:
    evals = [{"Progress/images": 9000, "Metrics/kid": 0.1, "Metrics/eval_sec": 3.0}]
    a = read(make_run(tmp_path / "a", rows(2), evals=evals))
    b = read(make_run(tmp_path / "b", rows(2, Loss_gp=0.25)))
    shown = {panel.title: panel.keys for panel in panels([a])}
    assert shown["kid"] == ("Metrics/kid",)
    assert shown["Losses"] == ("Loss/D", "Loss/G")
    assert not {"Penalties", "Memory, peak", "eval_sec"} & set(shown)  # only zeros, nothing at all, no metric
    assert {panel.title: panel.keys for panel in panels([a, b])}["Penalties"] == ("Loss/gp",)
    assert [panel.keys for panel in panels([a], ["Logits/real_minus_fake"])] == [("Logits/real_minus_fake",)]
    with pytest.raises(ConfigError, match=r"no run has Logits/gapp; there are Loss/D, .*Logits/real_minus_fake"):
        panels([a], ["Logits/gapp"])


def test_an_old_log_key_gives_its_new_name(tmp_path: Path) -> None:
    glossary = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for old, new in RENAMED_LOG_KEYS.items():
        assert f"`{new}`" in glossary
        assert f"`{old}`" not in glossary
        run = read(make_run(tmp_path / new, [{"Progress/images": 1, "Progress/kimg": 0.001, new: 1.0}]))
        with pytest.raises(ConfigError, match=f"^{old} is now {new}$"):
            panels([run], [old])
        before = read(make_run(tmp_path / old, [{"Progress/images": 1, "Progress/kimg": 0.001, old: 1.0}]))
        assert [panel.keys for panel in panels([before], [old])] == [(old,)]


def test_runs_that_are_called_alike_are_named_by_their_paths(tmp_path: Path) -> None:
    runs = [read(make_run(tmp_path / x / "run")) for x in "ab"]
    assert [one.name for one in group(runs)] == [str(tmp_path / x / "run") for x in "ab"]
    assert [one.name for one in group(runs[:1])] == ["run"]


def test_a_thinned_curve_keeps_its_ends_and_peaks() -> None:
    values = [math.sin(i / 300) for i in range(10_000)]
    values[4321] = 50.0
    few = thinned(Series([float(i) for i in range(10_000)], values), 100)
    assert len(few.values) <= 100
    assert few.kimg == sorted(few.kimg)
    assert (few.kimg[0], few.kimg[-1]) == (0.0, 9999.0)
    assert (4321.0, 50.0) in zip(few.kimg, few.values)
    assert all(values[int(at)] == value for at, value in zip(few.kimg, few.values))
    assert thinned(few, 100) == few


@pytest.mark.parametrize(
    ("metric", "choice"),
    [
        ("fid50k", min),
        ("kid", min),
        ("recall", max),
        ("is50k", max),
        ("density_10k", max),
        ("is_inception_10k_full", max),
        ("eval_sec", None),
        ("kid_subset_std_toy_64_full", None),
        ("is_split_std_inception_10k_full", None),
    ],
)
def test_which_of_two_values_of_a_metric_is_better(metric: str, choice: object) -> None:
    assert better(metric) is choice


def test_made_runs_are_what_a_run_writes(tmp_path: Path) -> None:
    """The helper's lines are JSON that stands on one line each."""
    lines = jsonl(rows(3)).splitlines()
    assert [json.loads(line)["Progress/images"] for line in lines] == [1000, 2000, 3000]
