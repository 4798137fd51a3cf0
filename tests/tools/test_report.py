"""`distgan report`: one file, whole, that needs nothing else and lets nothing of the run become markup."""

import base64
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import jsonl, make_run, rows
from PIL import Image

from distgan.cli.main import main
from distgan.tools.report import samples
from distgan.tools.report.chart import lay_out, ticks
from distgan.tools.report.history import Series
from distgan.tools.report.render import TEMPLATES

VOID = ("br", "img", "input", "meta")  # elements without an end
EVIL = "</pre></td><script>alert('x')</script><img src=x onerror=alert(1)>\"'&amp;"


class Page(HTMLParser):
    """A document taken apart: elements with their attributes, and all text by the element it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]] = self.text.get(self._open[-1], "") + data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]


def made(run: Path) -> Page:
    assert main(["report", str(run)]) == 0
    return Page((run / "report.html").read_text())


def picture(image: dict[str, str | None]) -> np.ndarray:
    kind, data = image["src"].split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_all_of_a_run_stands_in_it(tmp_path: Path) -> None:
    evals = [{"Progress/images": 1000 * i, "Metrics/kid": abs(i - 2) + 0.5, "Metrics/recall": i / 8} for i in (1, 2, 3)]
    page = made(make_run(tmp_path / "faces", evals=evals, grids=4))
    assert page.text["h1"] == "faces"
    assert page.text["h2"] == "SamplesMetricsCurvesDataSettingsEnvironmentLog"
    sliders = page.all("input")
    assert [(s["type"], s["max"], s["value"]) for s in sliders] == [("range", "3", "3")]
    images = page.all("img")
    assert [(i.get("data-kimg"), "hidden" in i) for i in images] == [
        ("0", True), ("1", True), ("2", True), ("3", False), (None, False),
    ]  # fmt: skip
    for level, image in zip((0, 5, 10, 15, 200), images):
        pixels = picture(image)
        assert pixels.shape == (64, 96, 3)
        assert abs(pixels.astype(int) - level).max() <= 3
    best = [td for td in page.all("td") if td.get("class") == "best"]
    assert len(best) == 2
    for told in ("node7", "9.9", "/no/such/shards", "48", "0.5"):
        assert told in page.text["td"]
    assert "finished" in page.text["pre"]
    assert {line["data-name"] for line in page.all("polyline")} >= {
        "Loss/D",
        "Loss/G",
        "Metrics/kid",
        "Logits/real_minus_fake",
    }


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", grids=2)
    page = made(run)
    for name, attributes in page.elements:
        assert name not in ("link", "iframe", "object", "embed", "base", "a")
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            assert attribute != "style"
            assert attribute not in ("src", "href", "xlink:href") or value.startswith("data:image/webp;base64,")
    assert "://" not in page.text["script"] + page.text["style"]
    assert "url(" not in page.text["style"]
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind in ("script", "style"):  # a browser runs these and no others
        digest = base64.b64encode(hashlib.sha256(page.text[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    moved = tmp_path / "elsewhere.html"
    shutil.copy(run / "report.html", moved)
    shutil.rmtree(run)
    assert len(Page(moved.read_text()).all("img")) == 3


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "<b>bold</b>&\udcff", [*rows(3), {"Progress/images": 4000, f"Metrics/{EVIL}": 1.0}], grids=1
    )
    page = made(run)
    plain = len([name for name, _ in page.elements if name in ("script", "b")])
    assert plain == 1
    (run / "samples" / "fakes-000000.png").rename(run / "samples" / "<i onclick=alert(1)>-000000.png")
    (run / "samples" / "x' onerror='alert(1).png").write_bytes((run / "samples" / "reals.png").read_bytes())
    (run / "samples" / "<s>.png").write_bytes(b"no image")
    (run / "config.yaml").write_text(
        json.dumps({"data": {"shards": [EVIL], "resolution": 32}, "wandb": {"notes": EVIL}})
    )
    (run / "log.txt").write_text(EVIL)
    (run / "status.json").write_text(json.dumps({"state": EVIL, "reason": EVIL, "world": [EVIL], "time": EVIL}))
    (run / "environment.json").write_text(json.dumps({"starts": [{"command": EVIL, "packages": {EVIL: EVIL}}, EVIL]}))
    (run / "evals.jsonl").write_text(jsonl([{"Progress/images": 1, f"Metrics/{EVIL}": 2.0, "Metrics/other": EVIL}]))
    page = made(run)
    names = {name for name, _ in page.elements}
    assert not names & {"b", "i", "s", "a"}
    assert len(page.all("script")) == 1
    assert "alert" not in page.text["script"]
    for name, attributes in page.elements:
        assert not any(attribute.startswith("on") for attribute in attributes), name
    for where in ("td", "pre", "th", "span", "polyline"):
        assert where == "polyline" or EVIL in page.text[where], where
    assert f"best {EVIL}" in page.text["dt"]


def test_grids_are_few_and_of_a_bounded_size(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", grids=50)
    Image.fromarray(np.zeros((100, 3000, 3), np.uint8)).save(run / "samples" / "reals.png")
    page = made(run)
    images = page.all("img")
    shown = [int(i["data-kimg"]) for i in images if "data-kimg" in i]
    assert len(shown) == samples.GRIDS
    assert (shown[0], shown[-1]) == (0, 49)
    assert max(b - a for a, b in itertools.pairwise(shown)) == 2
    assert picture(images[-1]).shape[1] == samples.SIDE
    assert (run / "report.html").stat().st_size < 500_000


def test_a_run_that_goes_on_was_killed_or_is_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "r", rows(3), grids=2)
    (run / "status.json").write_text('{"state": "running"}')
    (run / "config.yaml").write_text("data: {shards: x, resolution: 32}\nlost: {setting: 3}\n")
    (run / "samples" / "fakes-000001.png").write_bytes((run / "samples" / "fakes-000001.png").read_bytes()[:60])
    (run / "environment.json").write_text("[]")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"Progress')
    page = made(run)
    told = capsys.readouterr().out
    for part in (
        "its last line is half written",
        "config.yaml: not understood by this version",
        "Key 'lost' not in 'Config'",
        "fakes-000001.png: not readable as an image",
        "environment.json: got a list of 0, expected a mapping",
    ):
        assert part in told
        assert part in page.text["p"]
    assert len(page.all("img")) == 2  # fakes-000000 and reals
    assert page.all("input") == []  # one grid needs no slider
    assert "setting: 3" in page.text["pre"]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "status.json").write_text('{"state": "running"}')
    page = made(tmp_path / "r")
    assert "running" in page.text["span"]
    assert page.all("svg") == []


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["{}/nothing"], "nothing: no such run folder", 2),
        (["{}"], "is not a run folder", 2),
        (["{}/r", "--out", "{}/x.txt"], "the name must end in .html", 2),
        (["{}/r", "--out", "{}/r/log.txt/x.html"], "choose another place by --out", 5),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], told: str, code: int) -> None:
    make_run(tmp_path / "r", rows(2))
    assert main(["report", *(word.replace("{}", str(tmp_path)) for word in arguments)]) == code
    assert told in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="needs /proc")
def test_a_read_only_place_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "r", rows(2))
    assert main(["report", str(run), "--out", "/proc/report.html"]) == 5
    assert re.search(r"/proc/report.html: .*; choose another place by --out", capsys.readouterr().err)


def test_only_the_pages_own_files_enter_it_unescaped() -> None:
    unescaped = [word for file in TEMPLATES.iterdir() for word in re.findall(r"[\w.]+ *\| *safe", file.read_text())]
    assert sorted(unescaped) == ["script | safe", "style | safe"]


def test_a_chart_puts_values_where_they_belong() -> None:
    first, middle, last = lay_out([("a", Series([0.0, 10.0, 20.0], [1.0, 2.0, 3.0]))]).curves[0].points
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2))
    assert first[1] > last[1]  # upwards is smaller
    points = lay_out([("a", Series([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 10.0, 100.0]))], log=True).curves[0].points
    assert len(points) == 3  # zero has no place
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1])


@pytest.mark.parametrize(
    "values", [[5.0], [3.0, 3.0], [0.0, 0.0], [-1e-310, 1e299], [-1.7e308, 1.7e308], [1e-12, 1.0000000001e-12]]
)
def test_charts_of_odd_numbers_are_finite(values: list[float]) -> None:
    for log in (False, True):
        chart = lay_out([("a", Series([float(i) for i in range(len(values))], values))], log)
        places = [place for place, _ in (*chart.x_ticks, *chart.y_ticks)]
        places += [place for curve in chart.curves for point in curve.points for place in point]
        assert all(math.isfinite(place) for place in (*places, *chart.x_range, *chart.y_range))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    for low, high in ((0.13, 0.97), (-3e6, 8e6), (999.5, 1000.5)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 9
        assert all(low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high) for value in found)
