"""Class-balanced epochs: exact counts, a function of the position, and the same on any ranks and after a stop."""

import collections
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import train
from runs import audit, make_digits, weights, write_config
from shards import image_bytes, numbered_pixels, numbers_of, tar_bytes
from streams import make_stream

from distgan.config.schema import Config, Data, Model
from distgan.config.validate import config_errors
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import BalancedOrder, ShuffleLayout, ShuffleOrder
from distgan.storage.byte_ranges import ByteRangeReader

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(np.array)
LAYOUT = ShuffleLayout(lanes=8, block=4, window=3)


def plan_of(labels: np.ndarray, layout: ShuffleLayout = LAYOUT, seed: int = 0) -> ShuffleOrder:
    balanced = BalancedOrder(labels, seed)
    return ShuffleOrder(np.array([balanced.num_places]), layout, seed, balanced.samples)


@given(LABELS, st.integers(0, 2**32), st.integers(0, 10**6))
def test_each_class_is_seen_equally_often(labels: np.ndarray, seed: int, epoch: int) -> None:
    """In each epoch; and in it each sample of a class as often as any other, or once more."""
    plan, sizes = plan_of(labels, seed=seed), collections.Counter(labels.tolist())
    largest = max(sizes.values())
    assert plan.num_samples == largest * len(sizes)
    ids = plan.ids(epoch * plan.num_samples + np.arange(plan.num_samples))
    assert collections.Counter(labels[ids].tolist()) == dict.fromkeys(sizes, largest)
    times = np.bincount(ids, minlength=len(labels))
    for label, size in sizes.items():
        assert set(times[labels == label].tolist()) <= {largest // size, -(-largest // size)}


@given(LABELS, st.integers(0, 100))
def test_over_the_epochs_each_sample_has_its_turn(labels: np.ndarray, seed: int) -> None:
    """After as many epochs as a class has samples, all of that class were seen equally often."""
    plan = plan_of(labels, seed=seed)
    sizes = np.bincount(labels)[labels]
    epochs = 2 * int(np.lcm.reduce([*set(sizes.tolist())])) if sizes.max() < 12 else 0
    times = sum(
        (np.bincount(plan.ids(e * plan.num_samples + np.arange(plan.num_samples)), minlength=len(labels)))
        for e in range(min(epochs, 500))
    )
    if 0 < epochs <= 500:
        np.testing.assert_array_equal(times * sizes, epochs * sizes.max())


@given(LABELS, st.lists(st.integers(0, 10**4), min_size=1, max_size=30))
def test_a_position_has_one_sample_whenever_it_is_asked_for(labels: np.ndarray, positions: list[int]) -> None:
    together = plan_of(labels).ids(np.array(positions))
    for position, sample in zip(reversed(positions), reversed(together.tolist())):
        assert plan_of(labels).ids(np.array([position])).tolist() == [sample]


@given(LABELS)
def test_windows_hold_what_their_positions_say(labels: np.ndarray) -> None:
    plan = plan_of(labels)
    positions = np.arange(2 * plan.num_samples)
    windows, ids = plan.windows(positions), plan.ids(positions)
    for window in np.unique(windows):
        assert sorted(plan.window_ids(window).tolist()) == sorted(ids[windows == window].tolist())


def test_a_balanced_set_is_seen_once_in_an_epoch() -> None:
    labels = np.arange(120) % 4
    plan = plan_of(labels)
    assert sorted(plan.ids(np.arange(120, 240)).tolist()) == list(range(120))


def test_a_rare_picture_does_not_come_in_crowds() -> None:
    """One sample against 600 of another class: its many turns lie all over the epoch, not in one place."""
    labels = np.r_[np.zeros(600, int), 1]
    plan = plan_of(labels, ShuffleLayout(lanes=64, block=8, window=8))
    share = (plan.ids(np.arange(1200)) == 600).reshape(12, 100).mean(1)
    assert share.mean() == pytest.approx(0.5)
    assert share.min() > 0.3
    assert share.max() < 0.7


@pytest.fixture
def long_tail(tmp_path: Path) -> Path:
    """40, 9 and 2 pictures of classes 0, 1 and 3, and none of class 2."""
    labels = [0] * 40 + [1] * 9 + [3] * 2
    for shard in range(3):
        members = []
        for i in range(shard, 51, 3):
            members += [(f"{i:03d}.cls", b"%d" % labels[i]), (f"{i:03d}.png", image_bytes(numbered_pixels(i)))]
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes(members))
    return tmp_path


def test_batches_of_all_ranks_follow_the_balanced_plan(long_tail: Path) -> None:
    """Labels too, which are those that G gets; on any ranks."""
    data = Dataset(find_shards(str(long_tail)), ByteRangeReader(), DatasetOptions(labels=True))
    found = {}
    for world in (1, 2, 4):
        balanced = BalancedOrder(data.read_labels(), 3)
        plan = ShuffleOrder(np.array([balanced.num_places]), LAYOUT, 3, balanced.samples)
        streams = [make_stream(data, plan, start=120, rank=r, world=world) for r in range(world)]
        labels, numbers = [], []
        for _ in range(30):  # 240 images: two epochs
            for stream in streams:
                batch = next(stream)
                labels += batch.labels.tolist()
                numbers += numbers_of(batch.images).tolist()
        for stream in streams:
            stream.close()
        found[world] = (labels, numbers)
        assert collections.Counter(labels) == {0: 80, 1: 80, 3: 80}
        assert all(label == (0 if n < 40 else 1 if n < 49 else 3) for label, n in zip(labels, numbers))
    assert found[1] == found[2] == found[4]


def config(**data: object) -> Callable[..., Config]:
    return functools.partial(Config, data=Data(shards=["x"], resolution=16, **data))


def test_balance_needs_labels() -> None:
    assert any("data.balance=classes needs class labels" in line for line in config_errors(config(balance="classes")()))
    assert config_errors(config(balance="classes")(model=Model(conditional=True))) == []


@pytest.mark.multi
def test_a_balanced_run_resumes_on_other_ranks(tmp_path: Path) -> None:
    """What was seen is the same on any ranks, and on the same ranks the run is the same to the bit."""
    folder = make_digits(tmp_path / "digits")
    settings = write_config(tmp_path / "tiny.yaml", folder)
    common = [str(settings), "data.balance=classes", "data.audit=true", "sample.every=0"]
    train(2, tmp_path / "log", *common, "train.images=48", f"run.dir={tmp_path}/whole")
    train(2, tmp_path / "log", *common, "train.images=24", f"run.dir={tmp_path}/legs")
    train(2, tmp_path / "log", *common, "train.images=48", f"run.dir={tmp_path}/legs")
    assert weights(tmp_path / "legs") == weights(tmp_path / "whole")
    assert audit(tmp_path / "legs") == audit(tmp_path / "whole")
    train(1, tmp_path / "log", *common, "train.images=24", f"run.dir={tmp_path}/other")
    train(3, tmp_path / "log", *common, "train.images=48", f"run.dir={tmp_path}/other")
    assert audit(tmp_path / "other") == audit(tmp_path / "whole")
