"""Values over a run, and the generator's average, against closed forms."""

import math

import pytest
import torch
from torch import nn

from distgan.training import ema
from distgan.training.schedulers import value_at, warm_up


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_schedule_goes_from_its_first_to_its_last_value(shape: str) -> None:
    at = [value_at(images, [2e-4, 5e-5], 1000, shape) for images in (0, 500, 1000, 10**9)]
    assert at == pytest.approx([2e-4, 1.25e-4, 5e-5, 5e-5], rel=1e-12)


def test_the_curves_between() -> None:
    assert value_at(250, [0.0, 4.0], 1000, "linear") == pytest.approx(1.0)
    assert value_at(250, [0.0, 4.0], 1000, "cosine") == pytest.approx(4 * (1 - math.cos(math.pi / 4)) / 2)


def test_one_value_is_constant() -> None:
    assert value_at(123, [0.5], 1000, "cosine") == 0.5


def test_warm_up_rises_and_stays() -> None:
    assert [warm_up(images, 100) for images in (0, 25, 100, 500)] == [0, 0.25, 1, 1]
    assert warm_up(0, 0) == 1


def test_the_half_life_is_one() -> None:
    """After half_life images in any number of steps, half of the old weights is left."""
    for steps in (1, 4, 10):
        left = math.prod(ema.decay(10**9, 1000 // steps, 1000, ramp_up=0.05) for _ in range(steps))
        assert left == pytest.approx(0.5)


def test_the_ramp_shortens_the_half_life_of_a_young_run() -> None:
    assert ema.decay(2000, 64, 10_000, ramp_up=0.05) == pytest.approx(0.5 ** (64 / 100))
    assert ema.decay(2000, 64, 10_000, ramp_up=0) == pytest.approx(0.5 ** (64 / 10_000))
    assert ema.decay(2000, 64, 0, ramp_up=0.05) == 0


def test_update_is_a_weighted_mean_and_buffers_are_copied() -> None:
    torch.manual_seed(0)
    net, average = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.normal_(net.weight)
    net(torch.randn(4, 3, 2, 2))
    before = average.weight.detach().clone()
    ema.update(average, net, keep=0.75)
    assert torch.allclose(average.weight, 0.75 * before + 0.25 * net.weight)
    ema.copy_buffers(average, net)
    assert torch.equal(average.running_mean, net.running_mean)
    assert average.num_batches_tracked == 1
    ema.update(average, net, keep=0.0)
    assert torch.equal(average.weight, net.weight)
