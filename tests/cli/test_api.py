"""What programs import: `from distgan import ...`."""

from pathlib import Path

import numpy as np
import pytest
from processes import output, run_ranks
from runs import make_digits, status, write_config

import distgan
from distgan import open_stream, train
from distgan.errors import ConfigError


def test_all_that_is_public_can_be_imported() -> None:
    assert all(callable(getattr(distgan, name)) for name in distgan.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        distgan.no_such  # noqa: B018


def test_a_program_trains_and_goes_on(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    own = [f"run.dir={tmp_path / 'run'}", "wandb.mode=disabled"]
    assert train(config, *own, "train.images=120") == 0
    assert train(config, *own, "train.images=240") == 0
    assert status(tmp_path / "run")["images"] == 240
    with pytest.raises(ConfigError, match=r"train\.bach"):
        train(config, *own, "train.bach=3")


def test_a_stream_of_one_and_of_two_ranks_is_the_same_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shards = str(make_digits(tmp_path / "digits"))

    def taken(num: int, **settings: int) -> list[np.ndarray]:
        with open_stream(shards, batch=12, resolution=16, labels=True, **settings) as stream:
            return [
                np.concatenate([b.samples, b.labels, b.images.flatten()]) for b in (next(stream) for _ in range(num))
            ]

    whole = taken(4)
    assert all(map(np.array_equal, taken(2, start=24), whole[2:]))
    with open_stream(shards, batch=12, resolution=16, world=2, rank=1, seed=0) as second:
        samples = next(second).samples
    assert np.array_equal(samples, whole[0][6:12])


def test_a_program_that_leaves_a_stream_open_ends(tmp_path: Path) -> None:
    shards = str(make_digits(tmp_path / "digits"))
    program = (
        f"from distgan import open_stream\nprint(next(open_stream({shards!r}, batch=4, resolution=16)).samples.size)"
    )
    assert run_ranks(1, ["-c", program], tmp_path / "log") == [0], output(tmp_path / "log")
    assert output(tmp_path / "log").endswith("4\n")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": 7, "world": 2}, "a multiple of world=2"),
        ({"rank": 3, "world": 2}, "rank=3, world=2"),
        ({"resolution": 0}, "resolution=0"),
    ],
)
def test_what_a_stream_cannot_be_is_said(wrong: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told), open_stream("nowhere", **{"batch": 4, "resolution": 16} | wrong):
        pass


def test_settings_that_are_no_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="settings as words"):
        train("a.yaml", ["train.batch=3"])
