"""Resizers against slow references, one pixel at a time, and Pillow."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distgan.metrics.extractors.resize import RESIZERS

SIDES = [(7, 5), (32, 32), (40, 61), (16, 33)]
SIZE = 16


def pictures(height: int, width: int) -> Tensor:
    """Noise, and black beside white, where filters overshoot."""
    noise = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0))
    edge = (torch.arange(width) >= width // 2) * 255
    return torch.cat([noise, edge.expand_as(noise)]).float()


def two_by_two(image: np.ndarray, size: int, offset: float) -> np.ndarray:
    """Bilinear, one pixel at a time in float64: output pixel i lies at (i + offset) * scale - offset."""
    height, width = image.shape
    out = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y = max((i + offset) * height / size - offset, 0)
            x = max((j + offset) * width / size - offset, 0)
            top, left = math.floor(y), math.floor(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[below, left] * (1 - x + left) + image[below, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


def pillow(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image, mode="F").resize((size, size), Image.Resampling.BICUBIC))


def each_channel(images: Tensor, function: object, *arguments: object) -> np.ndarray:
    return np.stack([[function(channel.numpy(), *arguments) for channel in image] for image in images])


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("name", "offset"), [("tf1_bilinear", 0.0), ("bilinear", 0.5)])
def test_bilinear(name: str, offset: float, sides: tuple[int, int]) -> None:
    images = pictures(*sides)
    found = RESIZERS[name](images, SIZE).numpy()
    np.testing.assert_allclose(found, each_channel(images, two_by_two, SIZE, offset), rtol=0, atol=2e-4)


def test_tensorflow_s_grid_by_hand() -> None:
    """2 x 2 -> 4 x 4: every second pixel is one of the input's, and what lies beyond the border repeats it."""
    image = torch.tensor([[0.0, 100.0], [200.0, 40.0]])[None, None]
    rows = [[0, 50, 100, 100], [100, 85, 70, 70], [200, 120, 40, 40], [200, 120, 40, 40]]
    assert RESIZERS["tf1_bilinear"](image, 4)[0, 0].tolist() == rows


@pytest.mark.parametrize("sides", SIDES)
def test_clean_bicubic_is_pillow_s_clipped(sides: tuple[int, int]) -> None:
    images = pictures(*sides)
    found = RESIZERS["clean_bicubic"](images, SIZE).numpy()
    expected = each_channel(images, pillow, SIZE)
    assert expected.max() > 256  # it overshoots
    np.testing.assert_allclose(found, expected.clip(0, 255), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sides", SIDES)
def test_torch_bicubic_is_pillow_s_not_clipped(sides: tuple[int, int]) -> None:
    images = pictures(*sides)
    found = RESIZERS["torch_bicubic_aa"](images, SIZE).numpy()
    np.testing.assert_allclose(found, each_channel(images, pillow, SIZE), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", RESIZERS)
def test_an_image_of_the_right_size_stays_as_it_is(name: str) -> None:
    images = pictures(SIZE, SIZE)
    assert torch.equal(RESIZERS[name](images, SIZE), images)


@pytest.mark.parametrize("name", RESIZERS)
def test_one_colour_stays_one_colour(name: str) -> None:
    for level in (0.0, 77.0, 255.0):
        found = RESIZERS[name](torch.full((1, 3, 9, 21), level), SIZE)
        torch.testing.assert_close(found, torch.full_like(found, level), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RESIZERS)
def test_each_image_is_resized_by_itself(name: str) -> None:
    images = pictures(20, 24)
    alone = torch.cat([RESIZERS[name](image[None], SIZE) for image in images])
    torch.testing.assert_close(RESIZERS[name](images, SIZE), alone, rtol=0, atol=1e-3)  # of 255
