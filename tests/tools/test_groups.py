"""Runs that differ in their seed alone: one curve with a band, in plots and on the page of several runs."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from made_runs import make_run

from distgan.cli.main import main
from distgan.tools.report.groups import differing, group
from distgan.tools.report.history import read


def run(folder: Path, seed: int, values: dict[int, float], batch: int = 48, grids: int = 0) -> Path:
    """A run whose D loss has the given values, by thousands of images."""
    lines = [{"Progress/images": 1000 * at, "Progress/kimg": at, "Loss/D": value} for at, value in values.items()]
    evals = [{"Progress/images": 1000 * max(values), "Metrics/fd_toy_1k": 10.0 + seed}]
    made = make_run(folder, lines, evals=evals, grids=grids)
    config = f"data: {{shards: [/no/such/shards], resolution: 32}}\ntrain: {{batch: {batch}, seed: {seed}}}\n"
    (made / "config.yaml").write_text(config)
    return made


def test_a_group_has_the_mean_and_the_extremes_where_all_runs_are(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a" / "seed-0", 0, {1: 1.0, 2: 3.0, 3: 5.0}),
        run(tmp_path / "a" / "seed-1", 1, {1: 3.0, 3: 3.0, 4: 9.0}),  # 3 at 2,000 images, by a straight line
        run(tmp_path / "b", 0, {1: 2.0}, batch=96),
        run(tmp_path / "again", 0, {1: 7.0}),  # the seed of the first one: not another seed of it
    ]
    groups = group([read(path) for path in runs])
    assert [(one.name, len(one.runs)) for one in groups] == [("a", 2), ("b", 1), ("again", 1)]
    mean = groups[0].series("Loss/D")
    low, high = groups[0].band("Loss/D")
    assert mean.kimg == low.kimg == high.kimg == [1, 2, 3]
    assert (mean.values, low.values, high.values) == ([2, 3, 4], [1, 3, 3], [3, 3, 5])
    assert groups[1].band("Loss/D") is None
    assert differing(groups) == [("train.batch", [48, 96, 48])]


def test_runs_whose_settings_cannot_be_read_stay_alone(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, seed, {1: 1.0}) for seed, name in enumerate("ab")]
    for path in runs:
        (path / "config.yaml").write_text("data: [")
    assert [one.name for one in group([read(path) for path in runs])] == ["a", "b"]


def test_a_plot_shows_bands_and_one_legend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(tmp_path / "a" / f"seed-{seed}", seed, {1: 1.0 + seed, 2: 2.0}) for seed in range(3)]
    other = run(tmp_path / "b", 0, {1: 2.0, 2: 2.0}, batch=96)
    out = tmp_path / "both.svg"
    assert main(["plot", *map(str, [*runs, other]), "--keys", "Loss/D", "--out", str(out)]) == 0
    assert "1 panel(s) of 4 run(s)" in capsys.readouterr().out
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(out).getroot()
    assert [text.text for text in root.iter(f"{svg}text") if text.get("class") == "key"] == ["a", "b"]
    assert len(list(root.iter(f"{svg}polygon"))) == 1
    assert len(list(root.iter(f"{svg}polyline"))) == 2
    assert main(["plot", *map(str, [*runs, other]), "--keys", "Loss/D", "--out", str(out.with_suffix(".png"))]) == 0


def test_a_page_has_numbers_differing_settings_samples_and_bands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [run(Path("<a>") / f"seed-{seed}", seed, {1: 1.0, 2: 2.0 + seed}, grids=2) for seed in range(2)]
    other = run(Path("b"), 0, {1: 2.0, 2: 2.0}, batch=96, grids=1)
    (other / "metrics.jsonl").write_text((other / "metrics.jsonl").read_text() + json.dumps({"Loss/D": 1})[:-1])
    assert main(["report", *map(str, [*runs, other])]) == 0
    told = capsys.readouterr().out
    assert "b/metrics.jsonl: its last line is half written" in told
    assert "report.html" in told
    page = Path("report.html").read_text()
    assert "<a>" not in page
    for text in (
        "<tr><th>&lt;a&gt;</th><td>finished</td><td>2</td><td>2000</td><td></td><td>10.5 ± 0.7071</td></tr>",
        "<tr><th>b</th><td>finished</td><td>1</td><td>2000</td><td></td><td>10</td></tr>",
        "<tr><th>train.batch</th><td>48</td><td>96</td></tr>",
    ):
        assert text in page
    assert page.count("<img ") == 2
    assert page.count("<polygon ") == 1  # of the loss: a single evaluation is a point
