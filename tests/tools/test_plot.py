"""`distgan plot`: curves as a picture, of runs in any state."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, rows
from PIL import Image

from distgan.cli.main import main
from distgan.tools.report.plot import MAX_PANELS


def is_drawn(path: Path, colour: str) -> bool:
    """Whether a picture has pixels of exactly that colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return bool((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).any())


def test_one_run_is_drawn_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "r")
    assert main(["plot", str(run)]) == 0
    told = capsys.readouterr().out
    assert f"of 1 run(s): {run}/plots/curves.png" in told
    assert is_drawn(run / "plots" / "curves.png", "#2f6fde")
    assert is_drawn(run / "plots" / "curves.png", "#d9622b")


def test_several_runs_have_a_colour_each(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", rows(10, Own_key=3.0))
    out = tmp_path / "both.png"
    assert main(["plot", str(a), str(b), "--keys", "Logits/real_minus_fake,Own/key", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "warning: Own/key is not in a" in told
    assert "2 panel(s) of 2 run(s)" in told
    assert is_drawn(out, "#2f6fde")
    assert is_drawn(out, "#d9622b")


def test_a_run_without_metrics_beside_one_with_them_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"))
    make_run(Path("new"), [])
    assert main(["plot", "a", "new"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "warning: new has no metrics yet"
    assert told[-1].endswith("of 2 run(s): curves.png")
    assert is_drawn(Path("curves.png"), "#2f6fde")
    assert main(["plot", "a"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_svg_holds_names_as_text(tmp_path: Path) -> None:
    names = ("_a $x^{$", "%s\\frac", "<b>&", "\x01\udcff", "é 目")
    runs = [make_run(tmp_path / name) for name in names]
    out = tmp_path / "new" / "c.svg"
    assert main(["plot", *map(str, runs), "--out", str(out), "--keys", "Loss/D"]) == 0
    root = ElementTree.parse(out).getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(texts) >= {*names[:3], "\\x01\\udcff", names[4], "Loss/D"}
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == len(names)
    for run in runs:
        assert main(["plot", str(run), "--keys", "Loss/D"]) == 0
        assert is_drawn(run / "plots" / "curves.png", "#2f6fde")


def test_svg_and_png_show_the_same_at_the_same_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", rows(10))
    for kind in ("svg", "png"):
        assert main(["plot", str(run), "--keys", "Loss/D", "--out", str(tmp_path / f"c.{kind}")]) == 0
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB"))
    scale = pixels.shape[1] / float(root.get("width"))
    (group,) = root.iter(f"{svg}g")
    x, y = map(float, re.findall(r"[\d.]+", group.get("transform")))
    dots = list(group.iter(f"{svg}circle"))
    assert len(dots) == 10
    for dot in dots:
        row, column = round((y + float(dot.get("cy"))) * scale), round((x + float(dot.get("cx"))) * scale)
        assert pixels[row, column].tolist() == [0x2F, 0x6F, 0xDE]


def test_more_panels_than_a_file_shows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "r", rows(2, **{f"Own_{i}": 1.0 for i in range(MAX_PANELS + 1)}))
    keys = ",".join(f"Own/{i}" for i in range(MAX_PANELS + 1))
    assert main(["plot", str(run), "--keys", keys]) == 2
    assert "301 panels, and one file shows 300 at most: choose some by --keys" in capsys.readouterr().err


def test_a_run_that_goes_on_or_was_killed_or_is_odd(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "r", [*rows(3), {"Progress/images": 4000, "Optim/grad_norm_D": 0.0}])
    (run / "status.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"Progr')
    assert main(["plot", str(run), "--keys", "Optim/grad_norm_D"]) == 0
    assert "metrics.jsonl: its last line is half written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (["{}/nothing"], "nothing: no such run folder", 2),
        (["{}"], "is not a run folder", 2),
        (["{}/new"], "no metrics yet", 2),
        (["{}/r", "--out", "{}/x.pdf"], "the name must end in .png or .svg", 2),
        (["{}/r", "--out", "{}/r/log.txt/x.png"], "choose another place by --out", 5),
        (["{}/r", "--keys", "Loss/E"], "no run has Loss/E; there are Loss/D", 2),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], told: str, code: int) -> None:
    make_run(tmp_path / "r", rows(2))
    make_run(tmp_path / "new", [])
    assert main(["plot", *(word.replace("{}", str(tmp_path)) for word in arguments)]) == code
    assert told in capsys.readouterr().err


def test_plots_and_reports_wait_for_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", rows(2), grids=1)
    code = (
        "import sys; from distgan.cli.main import main; "
        f"assert main(['plot', {str(run)!r}, '--keys', 'Loss/D']) == 0 and main(['report', {str(run)!r}]) == 0; "
        "assert not {'torch', 'accelerate', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
