"""The order of samples: exactly once per epoch, the same for any ranks, and well shuffled."""

import hashlib
import time
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.rng import host_rng

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)
LAYOUTS = st.builds(ShuffleLayout, lanes=st.integers(1, 24), block=st.integers(1, 12), window=st.integers(1, 12))
PLANS = st.builds(ShuffleOrder, COUNTS.map(np.array), LAYOUTS, st.integers(0, 2**32))


def all_ids(plan: ShuffleOrder, first: int, stop: int) -> np.ndarray:
    """The order between two positions, a piece at a time: each position takes a row of `window` draws."""
    pieces = [np.arange(at, min(at + 4096, stop)) for at in range(first, stop, 4096)]
    return np.concatenate([plan.ids(piece) for piece in pieces])


@given(PLANS, st.integers(0, 10**6))
def test_every_epoch_holds_every_sample_once(plan: ShuffleOrder, epoch: int) -> None:
    n = plan.num_samples
    ids = plan.ids(np.arange(epoch * n, (epoch + 3) * n)).reshape(3, n)
    np.testing.assert_array_equal(np.sort(ids, axis=1), np.tile(np.arange(n), (3, 1)))


@given(PLANS, st.data())
def test_batches_over_ranks_and_resume_points_are_the_one_order(plan: ShuffleOrder, data: st.DataObject) -> None:
    """Legs of a run, each with its own batch, ranks and start, see what one rank sees that asks one by one."""
    order = all_ids(plan, 0, 4 * 3 * 5 * 9)
    cursor = 0
    for _ in range(data.draw(st.integers(1, 4))):
        world, local = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
        for _ in range(data.draw(st.integers(1, 3))):
            slices = [plan.ids(cursor + rank * local + np.arange(local)) for rank in range(world)]
            np.testing.assert_array_equal(np.concatenate(slices), order[cursor : cursor + world * local])
            cursor += world * local


@given(PLANS, st.data())
def test_ids_do_not_depend_on_what_was_asked_before_or_together(plan: ShuffleOrder, data: st.DataObject) -> None:
    order = all_ids(plan, 0, 2 * plan.num_samples)
    positions = np.array(data.draw(st.lists(st.integers(0, 2 * plan.num_samples - 1), min_size=1, max_size=20)))
    np.testing.assert_array_equal(plan.ids(positions), order[positions])
    np.testing.assert_array_equal(plan.ids(positions[:, None])[:, 0], order[positions])


@given(PLANS, st.integers(0, 3))
def test_windows_part_the_epoch(plan: ShuffleOrder, epoch: int) -> None:
    """A window's ids, read in storage order, are the ids at the positions that name it."""
    positions = epoch * plan.num_samples + np.arange(plan.num_samples)
    windows, ids = plan.windows(positions), plan.ids(positions)
    for window in np.unique(windows):
        inside = plan.window_ids(window)
        assert sorted(inside.tolist()) == sorted(ids[windows == window].tolist())
        in_body = positions[windows == window] % plan.num_samples < plan.rows * plan.layout.lanes
        assert in_body.all() or not in_body.any()
        assert len(inside) <= plan.layout.window or not in_body.any()


@given(PLANS)
def test_windows_of_other_epochs_have_other_numbers_and_lanes_move_forward(plan: ShuffleOrder) -> None:
    n, lanes = plan.num_samples, plan.layout.lanes
    windows = plan.windows(np.arange(3 * n))
    for earlier, later in ((0, 1), (1, 2)):
        assert not set(windows[earlier * n :][:n].tolist()) & set(windows[later * n :][:n].tolist())
    for lane in range(lanes):
        assert (np.diff(windows[windows % lanes == lane]) >= 0).all()


@given(COUNTS, LAYOUTS)
def test_a_window_is_made_of_runs_of_blocks(counts: list[int], layout: ShuffleLayout) -> None:
    """From one id to the next storage goes on by one, or a block of some shard begins: few ranges to read."""
    ends = np.cumsum(counts)
    begins = {start for end, n in zip(ends, counts) for start in range(end - n, end, layout.block)}
    plan = ShuffleOrder(np.array(counts), layout, seed=0)
    for window in np.unique(plan.windows(np.arange(plan.num_samples))).tolist():
        ids = plan.window_ids(window).tolist()
        assert all(b == a + 1 or b in begins for a, b in pairwise(ids))


@given(PLANS, st.data())
def test_substitutes_are_the_rest_of_the_window(plan: ShuffleOrder, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 3 * plan.num_samples - 1))
    substitutes = plan.replacements(position)
    window = plan.windows(np.array(position))
    epoch = position // plan.num_samples * plan.num_samples
    everywhere = plan.windows(epoch + np.arange(plan.num_samples))
    assert position not in substitutes
    assert len(set(substitutes.tolist())) == len(substitutes)
    assert {position, *substitutes.tolist()} == set((epoch + np.flatnonzero(everywhere == window)).tolist())
    # Best first is the next row, so that damaged neighbours do not all take the same substitute.
    later = [p for p in substitutes.tolist() if p > position]
    assert substitutes.tolist() == sorted(later) + sorted(set(substitutes.tolist()) - set(later))


@pytest.mark.parametrize(
    ("counts", "layout", "seed", "digest"),
    [
        (
            [1000, 0, 700, 1, 999],
            ShuffleLayout(lanes=32, block=8, window=16),
            0,
            "2e824b2c2b1c52cae924e367a871e178936ac66e2114f5691de1541c9c46fc82",
        ),
        (
            [5, 130, 64, 64, 63, 200],
            ShuffleLayout(lanes=24, block=64, window=7),
            12345,
            "7bf9808e4443646fda21148e10629d72e2e8fb5c90a0509be589d450caa74583",
        ),
        (
            [3, 2],
            ShuffleLayout(lanes=256, block=1, window=64),
            1,
            "f20857f260b825adeaf43e97e4f9b1f98030c24dd2ffdfac9c50ec701257c194",
        ),
    ],
    ids=["uneven shards", "large blocks", "fewer than lanes"],
)
def test_golden_order(counts: list[int], layout: ShuffleLayout, seed: int, digest: str) -> None:
    """A run keeps its order for ever: a change of this digest needs a new `plan.VERSION`."""
    order = all_ids(ShuffleOrder(np.array(counts), layout, seed), 0, 3 * sum(counts))
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest() == digest


def test_orders_inside_a_window_are_equally_likely() -> None:
    """All 24 orders of 4 rows: chi-square below its 99.99% quantile at 23 degrees of freedom, 57.0."""
    layout = ShuffleLayout(lanes=1, block=4, window=4)
    orders = [tuple(ShuffleOrder(np.array([4]), layout, seed).ids(np.arange(4)).tolist()) for seed in range(2400)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 57


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    counts, layout = np.full(10, 1000), ShuffleLayout(lanes=64, block=8, window=16)
    plan = ShuffleOrder(counts, layout, 0)
    orders = [
        *all_ids(plan, 0, 20_000).reshape(2, -1),
        all_ids(ShuffleOrder(counts, layout, 1), 0, 10_000),
        np.arange(10_000),
    ]
    places = np.argsort(orders, axis=1)
    assert np.abs(np.corrcoef(places) - np.eye(4)).max() < 0.1


def test_other_versions_and_empty_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="version 2"):
        ShuffleOrder(np.array([5]), ShuffleLayout(lanes=4, block=1, window=1, version=2), 0)
    with pytest.raises(ValueError, match="at least one sample"):
        ShuffleOrder(np.array([0, 0]), ShuffleLayout(lanes=4, block=1, window=1), 0)


@given(st.integers(1, 10**10), st.floats(1, 1e9), st.integers(1, 16384))
def test_chosen_layouts_keep_their_bounds(num_samples: int, mean_bytes: float, batch: int) -> None:
    layout = ShuffleLayout.choose(num_samples, mean_bytes, batch)
    assert layout.lanes % batch == 0
    assert 256 <= layout.lanes < 256 + batch
    assert 1 <= layout.block <= 64
    assert layout.block == 1 or layout.block * mean_bytes <= 2 * 2**20
    assert layout.block == 1 or num_samples >= 64 * layout.lanes * layout.block
    assert 1 <= layout.window <= 64
    assert layout.window == 1 or layout.window * layout.lanes * mean_bytes <= 512 * 2**20


def test_chosen_layout_of_usual_sets() -> None:
    assert ShuffleLayout.choose(1_281_167, 29_400, 256) == ShuffleLayout(lanes=256, block=64, window=64)
    assert ShuffleLayout.choose(50_000, 2_000, 64) == ShuffleLayout(lanes=256, block=3, window=64)
    assert ShuffleLayout.choose(10, 100, 64) == ShuffleLayout(lanes=256, block=1, window=64)
    assert ShuffleLayout.choose(10**6, 3e6, 100) == ShuffleLayout(lanes=300, block=1, window=1)


def distinct_classes(ids: np.ndarray, batch: int) -> float:
    """Mean number of classes in a batch when each thousand ids is a class."""
    batches = np.sort(ids[: len(ids) // batch * batch].reshape(-1, batch) // 1000, axis=1)
    return 1 + float((np.diff(batches) != 0).sum(axis=1).mean())


def test_batches_of_a_set_sorted_by_class_hold_as_many_classes_as_a_full_permutation() -> None:
    plan = ShuffleOrder(np.full(1000, 1000), ShuffleLayout.choose(10**6, 29_400, 256), seed=0)
    ideal = distinct_classes(host_rng.permutation(host_rng.key(0, "ideal"), 10**6), 256)
    assert ideal == pytest.approx(1000 * (1 - 0.999**256), rel=0.01)  # batches drawn at random
    every = np.arange(0, 10**6 // 256, 20)[:, None] * 256 + np.arange(256)  # each twentieth batch
    assert distinct_classes(plan.ids(every).ravel(), 256) == pytest.approx(ideal, rel=0.02)


def process_seconds(shards: Sequence[int], batch: int = 256) -> float:
    """Time of the CPU for a plan and its first batch, the best of three."""
    best = float("inf")
    for seed in range(3):
        start = time.process_time()
        counts = np.asarray(shards)
        ShuffleOrder(counts, ShuffleLayout.choose(int(counts.sum()), 29_400, batch), seed).ids(np.arange(batch))
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.slow
def test_a_million_samples_are_planned_in_50_ms() -> None:
    assert process_seconds([1000] * 1280) < 0.05


@pytest.mark.slow
def test_a_hundred_million_samples_are_planned_in_2_s() -> None:
    assert process_seconds([10_000] * 10_000) < 2


def test_plan_is_arrays_of_blocks() -> None:
    """A list of samples, or even an array of them, would show: 8 bytes for each of a million."""
    counts = np.full(1000, 1280)
    tracemalloc.start()
    try:
        plan = ShuffleOrder(counts, ShuffleLayout.choose(1_280_000, 29_400, 256), seed=0)
        plan.ids(np.arange(256))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * 1_280_000


@settings(max_examples=20)
@given(st.integers(1, 2000), st.integers(0, 5))
def test_sets_smaller_than_a_batch_repeat_without_a_gap(num_samples: int, seed: int) -> None:
    plan = ShuffleOrder(np.array([num_samples]), ShuffleLayout.choose(num_samples, 1000, 512), seed)
    ids = plan.ids(np.arange(max(512, num_samples)))
    assert np.bincount(ids, minlength=num_samples).max() <= -(-len(ids) // num_samples)
