"""What is handed to others: a wheel and an sdist that hold the package whole and work where they are installed."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from made_runs import make_run
from processes import ROOT, environment

from distgan import __version__

pytest.importorskip("hatchling", reason="hatchling is in the extra `dev`")
OWN = {path.relative_to(ROOT).as_posix() for path in (ROOT / "distgan").rglob("*") if "__pycache__" not in path.parts}
FILES = {name for name in OWN if (ROOT / name).is_file()}


def build(source: Path, out: Path, kind: str) -> Path:
    """A wheel or sdist of a source tree, made without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(command, cwd=source, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in members(wheel) if ".dist-info/" not in name}
    assert inside == FILES
    assert {
        "distgan/py.typed",
        "distgan/tools/report/templates/page.html",
        "distgan/tools/report/templates/page.css",
        "distgan/tools/report/templates/page.js",
        "distgan/data/digits.npz",
    } <= inside


def test_an_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, tmp_path / "sdist", "sdist")) as archive:
        archive.extractall(tmp_path / "source")  # `filter` came with 3.11.4, and this archive is our own
    (source,) = (tmp_path / "source").iterdir()
    assert members(build(source, tmp_path / "wheel", "wheel")) == members(wheel)
    for folder in ("configs", "docs", "launch", "slurm", "tests"):
        assert {p.name for p in (source / folder).glob("*.*")} >= {p.name for p in (ROOT / folder).glob("*.md")}
        assert (source / folder).is_dir()


def test_an_installed_wheel_works_away_from_its_source(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    own = {**environment(), "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}
    run = make_run(tmp_path / "run")

    def distgan(*words: str) -> str:
        command = [sys.executable, str(target / "bin" / "distgan"), *words]
        done = subprocess.run(command, cwd=elsewhere, env=own, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert distgan("--version") == f"distgan {__version__}\n"
    assert "train.batch" in distgan("config", "--help-keys", "train")
    assert "report.html" in distgan("report", str(run))
    shown = subprocess.run(
        [sys.executable, "-c", "import distgan; print(distgan.__file__)"],
        cwd=elsewhere,
        env=own,
        capture_output=True,
        text=True,
    )
    assert Path(shown.stdout.strip()).is_relative_to(target)
    assert os.listdir(elsewhere) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_strict_type_checker_accepts_what_users_write(tmp_path: Path) -> None:
    """Types of the package are seen by those who use it, and none of what they call lacks them."""
    pytest.importorskip("mypy", reason="mypy is in the extra `dev`")
    (tmp_path / "mine.py").write_text(
        "from distgan import load_generator, open_stream, train\n"
        "code: int = train('x.yaml', 'train.batch=3')\n"
        "G = load_generator('runs/faces')\n"
        "wrong: str = G.num_classes\n"
        "with open_stream('data/faces', batch=8, resolution=64) as stream:\n"
        "    for batch in stream:\n"
        "        print(batch.images.shape, batch.no_such_field)\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        os.devnull,
        "--cache-dir",
        str(tmp_path / "c"),
    ]
    done = subprocess.run([*command, "mine.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    told = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("mine.py")]
    assert told == [
        'error: Incompatible types in assignment (expression has type "int", variable has type "str")  [assignment]',
        'error: "Batch" has no attribute "no_such_field"  [attr-defined]',
    ], done.stdout
