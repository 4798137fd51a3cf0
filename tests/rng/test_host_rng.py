"""Keyed randomness against slow references, and golden digests so that no dependency can change a draw."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgan.rng import host_rng

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The output of SplitMix64 for a state that has been advanced, in Python integers."""
    x = state & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def test_bits_are_splitmix64() -> None:
    # The published sequence of seed 1234567: value i of a key is the (i + 1)th output of its generator.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert host_rng.bits(np.uint64(1234567), np.arange(1, 5)).tolist() == published


@given(st.integers(0, MASK), st.integers(0, 2**63 - 1))
def test_bits_equal_the_slow_version(key: int, index: int) -> None:
    assert int(host_rng.bits(np.uint64(key), index)) == splitmix64(key + index * 0x9E3779B97F4A7C15)


def test_bits_broadcast_keys_against_indexes() -> None:
    keys, index = host_rng.bits(np.uint64(5), np.arange(3)), np.arange(4)
    table = host_rng.bits(keys[:, None], index)
    assert table.shape == (3, 4)
    for r in range(3):
        np.testing.assert_array_equal(table[r], host_rng.bits(keys[r], index))


def test_golden_digests() -> None:
    def digest(array: np.ndarray) -> str:
        return hashlib.sha256(array.astype(f"<{array.dtype.kind}8").tobytes()).hexdigest()

    key = host_rng.key(1, "golden")
    words, order = host_rng.bits(key, np.arange(1000)), host_rng.permutation(key, 1000)
    assert int(host_rng.key(0)) == 8493733112532773764
    assert int(host_rng.key(7, "z", "D", 3)) == 14661559842578499913
    assert digest(words) == "6786607625fade7f48dcfb075e2f521d04bea2ffb2ca8968b8e3c757a8ce7fc2"
    assert digest(order) == "068b1fc3c963f112ab9c825c3a01922ad8ed5d82b47270549fff630fb3251fdf"


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 1000])
def test_permutation_holds_every_number_once(n: int) -> None:
    order = host_rng.permutation(host_rng.key(0, "test", n), n)
    assert sorted(order.tolist()) == list(range(n))
    assert n < 10 or order.tolist() != list(range(n))


def test_permutation_is_uniform() -> None:
    """All 24 orders of 4 things are equally likely: chi-square below its 99.99% quantile at 23 degrees, 57.0."""
    orders = [tuple(host_rng.permutation(host_rng.key(seed, "uniform"), 4).tolist()) for seed in range(4800)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 57


def test_keys_differ_by_seed_and_by_every_word() -> None:
    words = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "b", "a"), (0, "a", 1), (0, "a", 2), (-1,)]
    assert len({int(host_rng.key(*w)) for w in words}) == len(words)
    assert host_rng.key(3, "z", 12) == host_rng.key(3, "z", 12)


def test_uniform_is_the_top_of_the_bits() -> None:
    key, index = host_rng.key(2, "uniform"), np.arange(50_000)
    draws = host_rng.uniform(key, index)
    assert draws.dtype == np.float32
    expected = [(splitmix64(int(key) + i * 0x9E3779B97F4A7C15) >> 40) / 2**24 for i in range(100)]
    assert draws[:100].tolist() == expected
    assert draws.min() >= 0
    assert draws.max() < 1
    # Kolmogorov: the distance exceeds 1.95 / sqrt(n) in one of a thousand keys.
    steps = np.arange(len(draws) + 1) / len(draws)
    ordered = np.sort(draws)
    distance = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(len(draws))


def test_normal_is_box_muller_of_the_bits() -> None:
    key = host_rng.key(3, "normal")
    got = host_rng.normal(key, np.array([0, 5, 10**12]), 7)
    for row, index in enumerate([0, 5, 10**12]):
        expected = []
        for i in range(4):
            word = splitmix64(int(key) + (index * 2**20 + i) * 0x9E3779B97F4A7C15)
            radius = math.sqrt(-2 * math.log(((word >> 32) + 0.5) / 2**32))
            angle = 2 * math.pi * (word & 0xFFFFFFFF) / 2**32
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(got[row], expected[:7], atol=5e-6)
    assert got.dtype == np.float32


def test_normal_has_the_moments_and_the_distribution_of_a_normal() -> None:
    x = np.sort(host_rng.normal(host_rng.key(4, "normal"), np.arange(1000), 200).ravel()).astype(np.float64)
    n = len(x)
    # Each bound is five standard errors of the moment's estimate.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * math.sqrt(variance / n), power
    cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    distance = max(np.abs(cdf - np.arange(n) / n).max(), np.abs(cdf - np.arange(1, n + 1) / n).max())
    assert distance < 1.95 / math.sqrt(n)


def test_normal_columns_and_rows_are_uncorrelated() -> None:
    x = host_rng.normal(host_rng.key(5, "normal"), np.arange(20_000), 6)
    y = host_rng.normal(host_rng.key(5, "other"), np.arange(20_000), 6)
    table = np.corrcoef(np.concatenate([x, y, np.roll(x, 1, 0)], 1), rowvar=False)
    assert np.abs(table - np.eye(len(table))).max() < 5 / math.sqrt(len(x))


@given(st.integers(0, 1000), st.integers(0, 33), st.integers(0, 33))
def test_normal_rows_begin_alike_however_long(seed: int, n: int, m: int) -> None:
    key, index = host_rng.key(seed), np.array([3, 9])
    n, m = max(n, m), min(n, m)
    np.testing.assert_array_equal(host_rng.normal(key, index, n)[:, :m], host_rng.normal(key, index, m))


def test_normal_row_depends_on_its_index_alone() -> None:
    key, index = host_rng.key(6), np.array([8, 2, 2, 10**15, 0])
    together = host_rng.normal(key, index, 5)
    for row, i in zip(together, index):
        np.testing.assert_array_equal(row, host_rng.normal(key, np.array([i]), 5)[0])
    assert not np.array_equal(together[0], together[1])


def test_normal_is_finite_at_the_ends_of_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest and smallest words give finite numbers, up to sqrt(2 * ln(2^33)) = 6.76."""
    ends = np.array([[0, MASK, 0xFFFFFFFF, 0xFFFFFFFF00000000]], np.uint64)
    monkeypatch.setattr(host_rng, "bits", lambda keys, index: ends)
    row = host_rng.normal(np.uint64(0), np.zeros(1, int), 8)
    assert np.isfinite(row).all()
    assert np.abs(row).max() == pytest.approx(math.sqrt(2 * 33 * math.log(2)), rel=1e-6)
