"""Files that are written: rights by the umask, no link followed, nothing left over; and what a process lacks."""

import ast
import hashlib
import os
import re
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import environment
from range_server import RangeServer
from runs import make_digits, untrained, write_config
from shards import image_bytes, numbered_pixels, tar_bytes, write_shards

from distgan.cli.main import main
from distgan.data import image_grid
from distgan.data.shard_urls import find_shards
from distgan.errors import ConfigError, DataError, MachineError
from distgan.metrics import reference_stats, weights
from distgan.metrics.weights import find_weights
from distgan.storage import atomic, home
from distgan.storage.atomic import aside, replace_file, replacing
from distgan.storage.disk_cache import DiskCache
from distgan.storage.home import default_cache_dir, user_path
from distgan.storage.printable import flush_stdout, show
from distgan.storage.run_dir import RunDir

PACKAGE = Path(__file__).parents[2] / "distgan"
CONTENT = b"so many weights" * 1000


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def known() -> reference_stats.Reference:
    root = torch.eye(2, dtype=torch.float64)
    gaussian = reference_stats.Gaussian(9, torch.zeros(2, dtype=torch.float64), root)
    return reference_stats.Reference(reference_stats.Features(gaussian, torch.empty(0, 2), root=root), {"a": 1})


def download(monkeypatch: pytest.MonkeyPatch) -> Path:
    with RangeServer({"/net.pth": CONTENT}) as server:
        file = weights.WeightsFile(
            ("net.pth",), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), f"{server.address}/net.pth"
        )
        monkeypatch.setitem(weights.WEIGHTS, "net", file)
        return find_weights("net", download=True)


@pytest.mark.parametrize(
    "mask", [0o006, *(pytest.param(mask, marks=pytest.mark.slow) for mask in (0o077, 0o022, 0o002))]
)
def test_all_that_is_written_has_the_rights_that_the_umask_leaves(
    mask: int, tmp_path: Path, own_cache: Path, umask: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trained = untrained(tmp_path / "trained")
    umask(mask)
    out = tmp_path / "out"
    out.mkdir()
    digits = out / "new" / "digits"
    write_shards(out / "shards", [8])
    config = write_config(out / "c.yaml", digits)
    toy = ["eval.every=24", "eval.extractor=toy", "eval.num_images=24", "eval.metrics=[fd]"]
    commands = [
        ["pack", str(PACKAGE / "data" / "digits.npz"), str(digits), "--resolution", "16", "--workers", "1"],
        ["index", str(out / "shards")],
        ["train", str(config), f"run.dir={out}/run", "train.images=24", "data.audit=true", *toy],
        ["generate", str(trained), "--num", "3", "--out", str(out / "png")],
        ["generate", str(trained), "--num", "3", "--out", str(out / "set"), "--as", "shards"],
        ["generate", str(trained), "--num", "3", "--out", str(out / "grids" / "a.png"), "--as", "grid"],
        ["generate", str(trained), "--num", "3", "--out", str(out / "videos" / "a.webp"), "--as", "video"],
        ["export", str(trained), str(out / "exports" / "a")],
        ["report", str(out / "run")],
    ]
    for words in commands:
        assert main(words) == 0, words
    find_shards("pipe:echo", allow_pipe=True)
    download(monkeypatch)
    DiskCache(own_cache / "node", 10**6).store("http://host/0.tar", 3, 0, b"abc")
    made = [out, *out.rglob("*"), own_cache, *own_cache.rglob("*")]
    assert {"model.safetensors", "G.safetensors", "000.tar.index", "dataset.json", "pipes", "metrics"} <= {
        path.name for path in made
    }
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_no_link_that_somebody_planted_is_followed(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever knows the names that are written can lay links to any file under them."""
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "5" * 2 * size)  # as if one could foresee it
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    piped = own_cache / "pipes" / f"{hashlib.sha256(b'pipe:echo').hexdigest()[:24]}.tar"
    for path in (folder / "a.png", folder / "r.npz", folder / "t.json", own_cache / "weights" / "net.pth", piped):
        path.parent.mkdir(exist_ok=True, parents=True)
        for name in (aside(path).name, f".{path.name}", f".{path.name}.{os.getpid()}", f".{path.name}.lock"):
            (path.parent / name).symlink_to(victim)
    writers: list[Callable[[], object]] = [
        lambda: image_grid.save_png(folder / "a.png", np.zeros((2, 2, 3), np.uint8)),
        lambda: reference_stats.save(folder / "r.npz", known()),
        lambda: replace_file(folder / "t.json", "{}"),
        lambda: download(monkeypatch),
        lambda: find_shards("pipe:echo", allow_pipe=True),
    ]
    for write in writers:
        with pytest.raises((OSError, MachineError, DataError)):
            write()
        assert victim.read_text() == "precious"
    (own_cache / "weights" / ".net.pth.lock").unlink()
    monkeypatch.undo()
    monkeypatch.setenv("DISTGAN_CACHE", str(own_cache))
    for write in writers:  # names of their own are no trouble
        write()
    (folder / "link.json").symlink_to(victim)
    replace_file(folder / "link.json", "{}")  # takes the link's place
    run = folder / "run"
    run.mkdir()
    (run / ".lock").symlink_to(victim)
    with pytest.raises(MachineError, match="a link, not a file of its own"):
        RunDir(run).open([])
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["zip", "tar", "shard"])
def test_names_in_an_archive_name_no_file(kind: str, tmp_path: Path) -> None:
    names = ["../../a.png", "/b.png", f"{tmp_path}/c.png", "x/../../d.png", "~/e.png", "dataset.json/../f.png"]
    members = [(name, image_bytes(numbered_pixels(i))) for i, name in enumerate(names)]
    archive = tmp_path / "from" / ("0.zip" if kind == "zip" else "0.tar")
    archive.parent.mkdir()
    archive.write_bytes(tar_bytes(members))
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, data in members:
                file.writestr(name, data)
    before = set(tmp_path.rglob("*"))
    source = archive.parent if kind == "shard" else archive
    assert main(["pack", str(source), str(tmp_path / "out" / "set")]) == 0
    new = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}
    assert {name for name in new if not name.startswith(("cache", "from/0.tar.index"))} <= {
        "out",
        *(f"out/set{end}" for end in ("", "/000000.tar", "/000000.tar.index", "/dataset.json", "/skipped.jsonl")),
    }


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    for error in (OSError(28, "full"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing(path) as part:
            part.write_text("half")
            raise error
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]
    with replacing(path, sync=True) as part:
        part.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "new")]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    own, kept = aside(tmp_path / "a"), []
    for process, is_kept in ((dead.pid, False), (os.getpid(), True), (10**30, False)):
        for path in (tmp_path / own.name.replace(f"-{os.getpid()}-", f"-{process}-"),):
            path.write_text("half")
            kept += [path.name] if is_kept else []
    other_host = tmp_path / own.name.replace(own.name.split(".")[2][:8], "0" * 8)
    old = other_host.with_name(other_host.name.replace(".a.", ".b."))
    for path in (other_host, old, tmp_path / ".a.part", tmp_path / "mine.12345678-1-1234567812345678.part"):
        path.write_text("x")
    os.utime(old, (0, 0))
    folder = tmp_path / own.name.replace(".a.", ".export.").replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    (folder / "inner").mkdir(parents=True)
    atomic._sweep_once.cache_clear()
    replace_file(tmp_path / "c", "")
    left = {path.name for path in tmp_path.iterdir()}
    foreign = {".a.part", "mine.12345678-1-1234567812345678.part"}
    assert left == {"c", *kept, other_host.name, *foreign}
    os.utime(other_host, (time.time() - 300,) * 2)
    RunDir(tmp_path).open([])  # which no other run has now
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} - foreign == {
        "c",
        *kept,
        ".lock",
        "environment.json",
    }


def test_nothing_else_makes_files_of_a_passing_name() -> None:
    """One door for names that are known beforehand, and one for home folders."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert not re.search(r"(NamedTemporaryFile|mkstemp|mkdtemp|chmod)$", called), (path, called)
            if path.name != "home.py":
                assert not re.search(r"(?<!os\.path)\.expanduser$|Path\.home$", called), (path, called)


def test_a_user_without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Path:
        raise RuntimeError

    for name in ("DISTGAN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", fails)
    monkeypatch.setattr(home.tempfile, "gettempdir", lambda: str(tmp_path))
    place = tmp_path / f"distgan-{os.getuid()}"
    home._cache_without_home.cache_clear()
    assert default_cache_dir() == default_cache_dir() == place
    assert caplog.text.count("DISTGAN_CACHE") == 1
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    home._cache_without_home.cache_clear()
    with pytest.raises(MachineError, match="others may write there: set DISTGAN_CACHE"):
        default_cache_dir()
    place.rename(tmp_path / "theirs")
    place.symlink_to(tmp_path / "theirs")
    with pytest.raises(MachineError, match="set DISTGAN_CACHE"):
        default_cache_dir()
    monkeypatch.setenv("DISTGAN_CACHE", "/a/cache")
    assert default_cache_dir() == Path("/a/cache")
    with pytest.raises(ConfigError, match=r"~no-such-user/x: no such home folder: set HOME"):
        user_path("~no-such-user/x")
    assert main(["index", "~no-such-user/x"]) == 2


RAN = """
import os, sys
sys.argv[0] = "distgan"
for number in map(int, os.environ["CLOSED"].split()):
    os.close(number)
if "NAMELESS" in os.environ:  # as for a user who is in no list
    import pwd
    pwd.getpwuid = {}.__getitem__
for number in (1, 2):  # as Python has it in a process that was started without them
    if str(number) in os.environ["CLOSED"]:
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)
from distgan.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def run(*words: object, closed: str = "", **more: object) -> subprocess.CompletedProcess:
    variables = {**environment(), "CLOSED": closed, **more.pop("env", {})}
    for name in more.pop("without", ()):
        variables.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", RAN, *map(str, words)], env=variables, timeout=270, text=True, **{"stderr": -1, **more}
    )


def test_a_command_without_streams_does_its_work(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path / "set", [4])
    assert run("index", tmp_path / "set", closed="0 1 2").returncode == 0
    whole = Path(f"{shard}.index").read_bytes()
    Path(f"{shard}.index").unlink()
    with open("/dev/full", "w") as full:
        done = run("index", tmp_path / "set", stdout=full)
        assert done.returncode == 5
        assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
        assert Path(f"{shard}.index").read_bytes() == whole
        assert run("index", tmp_path / "none", stdout=full, stderr=full).returncode == 3


def test_a_full_stdout_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flush_stdout() == ""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        show("a")
        show("b")
        assert flush_stdout() == "No space left on device"
        assert flush_stdout() == ""
    ends = os.pipe()
    os.close(ends[0])
    with os.fdopen(ends[1], "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        show("a")
        assert flush_stdout() == ""


def test_a_user_without_a_name_trains(tmp_path: Path) -> None:
    digits = make_digits(tmp_path / "digits")
    config = write_config(tmp_path / "c.yaml", digits)
    own = ["train.images=24", "sample.every=0", f"run.dir={tmp_path}/run"]
    done = run(
        "train",
        config,
        *own,
        env={"NAMELESS": "1", "TMPDIR": str(tmp_path), "WANDB_MODE": "offline"},
        without=("HOME", "DISTGAN_CACHE"),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
