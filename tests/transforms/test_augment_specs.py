"""Augmentation of images of other channels and shapes, against closed forms and what squares of colors get."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distgan.transforms import augment as module
from distgan.transforms.augment import AUGMENTATIONS, augment

NUM_DRAWS = {name: one.num_draws for name, one in AUGMENTATIONS.items()}

COLOR_PIPES = ["diffaugment", "ada", "ada-cutout"]
LAST = 1 - 2**-24  # the largest number that is drawn: with p = 1/2, the operation is not applied


def batch(channels: int, height: int = 12, width: int = 20, num: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num, channels, height, width, dtype=torch.float64, generator=generator) * 2 - 1


def rows(pipe: str, num: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(num, NUM_DRAWS[pipe], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def only(pipe: str, start: int, *numbers: float, num: int = 1) -> Tensor:
    """A row that does one operation, whose numbers begin at `start`, where p = 1/2."""
    draws = torch.full((num, NUM_DRAWS[pipe]), LAST, dtype=torch.float64)
    draws[:, start : start + 1 + len(numbers)] = torch.tensor([0.0, *numbers], dtype=torch.float64)
    return draws


# Channels.


@pytest.mark.parametrize("pipe", COLOR_PIPES)
@pytest.mark.parametrize("p", [0.6, 1.0])
def test_gray_gets_the_mean_of_three_equal_channels(pipe: str, p: float) -> None:
    gray = batch(1)
    expected = augment(gray.expand(-1, 3, -1, -1), rows(pipe), pipe, p).mean(1, keepdim=True)
    torch.testing.assert_close(augment(gray, rows(pipe), pipe, p), expected, rtol=1e-9, atol=1e-12)
    assert (expected - gray).abs().amax((1, 2, 3)).gt(0.01).float().mean() > 0.5


@pytest.mark.parametrize("pipe", NUM_DRAWS)
@pytest.mark.parametrize("colors", [1, 3])
def test_transparency_moves_with_the_colors_which_are_as_without_it(pipe: str, colors: int) -> None:
    images = batch(colors + 1)
    found = augment(images, rows(pipe), pipe, 0.8, 0.9, alpha=True)
    assert torch.equal(found[:, :-1], augment(images[:, :-1], rows(pipe), pipe, 0.8, 0.9))
    assert torch.equal(found[:, -1:], augment(images[:, -1:], rows(pipe), pipe, 0.8, color=0.0))
    if pipe != "flip":
        assert not torch.allclose(found, augment(images, rows(pipe), pipe, 0.8, 0.9), atol=1e-3)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_get_brightness_and_contrast_alone(channels: int) -> None:
    """Of two to 32 channels that are not colors: ADA's gain and offset, DiffAugment's about the mean of all."""
    images = batch(channels, num=1)
    one = 0.8413447460685429 - 2**-25  # the uniform number of a normal one of 1
    brighter = augment(images, only("ada", 18, one), "ada", 0.5)
    torch.testing.assert_close(brighter, images + 0.2, rtol=0, atol=1e-9)
    stronger = augment(images, only("ada", 20, one), "ada", 0.5)
    torch.testing.assert_close(stronger, images * math.sqrt(2), rtol=1e-9, atol=0)
    for start in (22, 24, 26):  # luma flip, hue, saturation
        assert torch.equal(augment(images, only("ada", start, 0.7), "ada", 0.5), images)
    contrast = augment(images, only("diffaugment", 4, 0.9), "diffaugment", 0.5)
    torch.testing.assert_close(contrast, (images - images.mean()) * 1.4 + images.mean(), rtol=0, atol=1e-12)
    brightness = augment(images, only("diffaugment", 0, 0.9), "diffaugment", 0.5)
    torch.testing.assert_close(brightness, images + 0.4, rtol=0, atol=1e-12)
    assert torch.equal(augment(images, only("diffaugment", 2, 0.9), "diffaugment", 0.5), images)  # saturation


@pytest.mark.parametrize("pipe", NUM_DRAWS)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_what_every_image_keeps(pipe: str, channels: int) -> None:
    """Unchanged with p = 0; alone as in a batch, bit by bit; and both derivatives."""
    images, draws = batch(channels, 16, 24).float(), rows(pipe).float()
    assert torch.equal(augment(images, draws, pipe, 0.0), images)
    together = augment(images, draws, pipe, 0.8)
    for i in (0, 7):
        assert torch.equal(augment(images[i : i + 1], draws[i : i + 1], pipe, 0.8), together[i : i + 1])
    few = batch(channels, 6, 8, num=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x.sin(), draws[:2], pipe), few, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x.sin(), draws[:2], pipe), few, fast_mode=True)


# Shape.


def transposed(draws: Tensor, pipe: str) -> Tensor:
    """The numbers that do to transposed images what `draws` do to images, where p = 1.

    A rotation turns the other way, a stretch along x is one along y, and mirrored columns are mirrored rows: mirrored
    columns and half a turn.
    """
    draws = draws.clone()
    if pipe == "diffaugment":
        return draws[:, [*range(7), 8, 7, 9, 11, 10]]
    is_mirrored = draws[:, 1] >= 0.5
    draws[:, 3] = torch.where(is_mirrored, (draws[:, 3] + 0.5) % 1, draws[:, 3])
    for at in (10, 14):
        draws[:, at] = 1 - draws[:, at]
    draws[:, 12] = 1 - draws[:, 12] - 2**-24
    order = list(range(NUM_DRAWS[pipe]))
    for at in (5, 16, 29)[: 3 if pipe == "ada-cutout" else 2]:
        order[at], order[at + 1] = order[at + 1], order[at]
    return draws[:, order]


@pytest.mark.parametrize("pipe", COLOR_PIPES)
@pytest.mark.parametrize("size", [(12, 20), (16, 24), (9, 64)])
def test_transposed_images_get_the_transposed_result(pipe: str, size: tuple[int, int]) -> None:
    images, draws = batch(3, *size), rows(pipe, seed=3)
    expected = augment(images, draws, pipe).mT
    found = augment(images.mT.contiguous(), transposed(draws, pipe), pipe)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # the inverse of the normal distribution's tails


@pytest.mark.parametrize("pipe", COLOR_PIPES)
def test_numbers_for_each_axis_are_those_of_a_square(pipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for two sides, at equal ones; turns by quarters are squares' own."""
    images, draws = batch(3, 16, 16), rows(pipe)
    draws[:, 3] = torch.where(draws[:, 3] < 0.5, 0.1, 0.6)  # no turn, or half a turn: in both forms
    expected = augment(images, draws, pipe)

    def two(x: float, y: float, like: Tensor, dims: int) -> Tensor:
        return torch.tensor([x, y], dtype=like.dtype).view(2, *[1] * (dims - 1))

    monkeypatch.setattr(module, "_by_axis", two)
    torch.testing.assert_close(augment(images, draws, pipe), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("u", "is_turned"), [(0.1, False), (0.4, False), (0.6, True), (0.9, True)])
def test_images_that_are_no_squares_get_half_turns_alone(u: float, is_turned: bool) -> None:
    images = batch(2, num=1).float()
    found = augment(images, only("ada", 2, u), "ada", 0.5)
    assert torch.equal(found, images.flip(2, 3) if is_turned else images)


def test_a_rotation_keeps_lengths_in_pixels() -> None:
    """A ramp of one level to a pixel has a slope of one in any direction, however wide the image is."""
    ramp = torch.arange(64).double().expand(1, 1, 32, 64)
    turned = augment(ramp, only("ada", 9, 0.55), "ada", 0.5)[0, 0]
    across, down = turned[16, 33] - turned[16, 32], turned[17, 32] - turned[16, 32]
    angle = 0.1 * math.pi
    assert (across.item(), down.item()) == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-9)


def test_translations_reach_an_eighth_of_each_side() -> None:
    num, height, width = 2000, 16, 48
    for pipe, start in (("ada", 4), ("diffaugment", 6)):
        draws = only(pipe, start, 0.0, 0.0, num=num)
        draws[:, start + 1 : start + 3] = rows(pipe, num)[:, :2]
        places = torch.stack([torch.arange(width).expand(height, -1), torch.arange(height)[:, None].expand(-1, width)])
        found = augment(places.double().expand(num, -1, -1, -1), draws, pipe, 0.5)[:, :, 8, 24]
        assert (24 - found[:, 0]).unique().tolist() == list(range(-6, 7))
        assert (8 - found[:, 1]).unique().tolist() == list(range(-2, 3))


@pytest.mark.parametrize(("pipe", "start"), [("diffaugment", 9), ("ada-cutout", 28)])
def test_the_cutout_is_half_of_each_side(pipe: str, start: int) -> None:
    images = batch(2, 16, 32, num=1)
    expected = images.numpy()[0].copy()
    expected[:, 4:12, 8:24] = 0
    assert np.array_equal(augment(images, only(pipe, start, 0.5, 0.5), pipe, 0.5)[0].numpy(), expected)
