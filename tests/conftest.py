"""What every test has: a cache of its own, and no deadline, since a busy machine is no failure of the code."""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from processes import SHARED_SERVER, fork_server, start_fork_server, wait_for

settings.register_profile("distgan", deadline=None)
settings.load_profile("distgan")


def pytest_configure(config: pytest.Config) -> None:
    """One server forks the ranks of all of xdist's workers."""
    if getattr(config.option, "numprocesses", None):  # none in a worker
        os.environ[SHARED_SERVER] = start_fork_server()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Where Python keeps what it compiles, let the server import first, then one worker, then the others.

    In a new environment each of them would compile all of it, which takes longer than to wait for the first one.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or sys.dont_write_bytecode:
        return (yield)
    compiled = Path(fork_server()).with_name("compiled")
    if worker != "gw0":
        wait_for(compiled.exists, 240)
    try:
        return (yield)
    finally:
        if worker == "gw0":
            compiled.touch()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Indexes and piped shards of a test go into its own folder, not into the user's cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("DISTGAN_CACHE", str(cache))
    yield cache


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of small digits, which tests read."""
    from runs import make_digits  # with torch, which not every test needs

    return make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture
def config(tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a run that takes seconds, without W&B."""
    from runs import write_config

    monkeypatch.setenv("WANDB_MODE", "disabled")
    return write_config(tmp_path / "tiny.yaml", digits)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first, since they take longest: no worker is left with one of them at the end."""
    long = {item.path for item in items if item.get_closest_marker("multi")}
    items.sort(key=lambda item: item.path not in long)
