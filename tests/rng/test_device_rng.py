"""Random numbers on the device: functions of (seed, purpose, index), well distributed."""

import numpy as np
import pytest
import scipy  # its parts load when they are used
import torch

from distgan.rng import device_rng

SEEDS = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 400))


def test_bits_are_splitmix() -> None:
    """Against Python's own integers."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    golden, key = 0x9E3779B97F4A7C15, int(device_rng.host_rng.key(0, "some purpose"))
    found = device_rng.bits(SEEDS[:5], "some purpose", 7)
    for seed, row in zip(SEEDS[:5].tolist(), found.tolist()):
        start = mixed((seed % 2**64 * golden + key) % 2**64)
        assert [x % 2**64 for x in row] == [mixed((start + i * golden) % 2**64) for i in range(7)]


@pytest.mark.parametrize("function", [device_rng.uniform, device_rng.normal])
def test_numbers_depend_on_seed_and_purpose_alone(function: callable) -> None:
    whole = function(SEEDS, "a", 9)
    assert whole.shape == (400, 9)
    assert whole.dtype is torch.float32
    assert torch.equal(function(SEEDS[37:38], "a", 9), whole[37:38])
    assert torch.equal(function(SEEDS.flip(0), "a", 9), whole.flip(0))
    assert torch.equal(function(SEEDS, "a", 4), whole[:, :4])
    assert not torch.equal(function(SEEDS, "b", 9), whole)


@pytest.mark.parametrize("function", [device_rng.uniform, device_rng.normal])
def test_several_purposes_in_one_call_are_those_purposes_one_by_one(function: callable) -> None:
    together = function(SEEDS, ("a", "b", "c"), 5)
    assert torch.equal(together, torch.cat([function(SEEDS, purpose, 5) for purpose in "abc"]))


def test_distributions() -> None:
    uniform = device_rng.uniform(SEEDS, "a", 500).double()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert scipy.stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-4
    normal = device_rng.normal(SEEDS, "a", 501).double()
    assert scipy.stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-4
    assert normal.abs().max() < 6
    for numbers in (uniform, normal):  # neither rows nor columns know of one another
        for matrix in (numbers, numbers.T):
            correlation = torch.corrcoef(matrix[:300])
            assert (correlation - torch.eye(300)).abs().max() < 0.35
