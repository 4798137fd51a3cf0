"""Stored values, what networks see, and what people see, against formulas."""

import numpy as np
import pytest
import torch

from distgan.image_spec import ImageSpec, square
from distgan.transforms.image_values import (
    TORCH,
    display_pixels,
    shown_as,
    to_display,
    to_networks,
    to_pixels,
)

RNG = np.random.default_rng(0)
SPECS = [
    square(4),
    square(4, 1),
    ImageSpec(4, 6, 4, alpha=True),
    ImageSpec(4, 6, 2, alpha=True),
    ImageSpec(6, 4, 1, "uint16"),
    ImageSpec(6, 4, 3, "uint16", 100, 4095),
    ImageSpec(4, 4, 5, "float32", -3, 2.5),
    ImageSpec(4, 4, 3, "uint8", 16, 235),
]


def stored(image: ImageSpec, num: int = 8) -> np.ndarray:
    """Values in the range, its ends among them; invisible pixels have no color."""
    values = RNG.uniform(image.low, image.high, (num, *image.shape)).astype(image.dtype)
    values.reshape(-1)[:2] = image.low, image.high
    if image.alpha:
        values[..., :-1][values[..., -1] == 0] = 0
    return values


@pytest.mark.parametrize("image", SPECS, ids=str)
def test_the_way_in_and_out_loses_nothing(image: ImageSpec) -> None:
    values = stored(image)
    seen = to_networks(torch.from_numpy(values), image)
    expected = (values.astype(np.float64) - image.low) / (image.high - image.low) * 2 - 1
    np.testing.assert_allclose(
        seen.permute(0, 2, 3, 1).numpy(), expected, atol=2e-7 if image.dtype != "float32" else 1e-6
    )
    back = to_pixels(seen, image)
    assert back.dtype == image.dtype and back.shape == values.shape
    np.testing.assert_allclose(back, values, rtol=0, atol=0 if image.dtype != "float32" else 1e-6)


@pytest.mark.parametrize("image", SPECS, ids=str)
def test_values_beyond_the_range_are_clipped_both_ways(image: ImageSpec) -> None:
    made = torch.tensor([-7.0, 7.0]).view(2, 1, 1, 1).expand(2, image.channels, *image.shape[:2])
    low, high = to_pixels(made, image)
    assert (low == (0 if image.alpha else image.low)).all() and (high == image.high).all()
    values = torch.full((1, *image.shape), 250).to(TORCH[image.dtype])
    assert to_networks(values, image).abs().max() <= 1


def test_8_bit_colors_have_the_bits_of_the_plain_formula() -> None:
    values = torch.from_numpy(stored(square(16)))
    assert torch.equal(to_networks(values, square(16)), values.permute(0, 3, 1, 2).float() / 127.5 - 1)
    images = torch.randn(5, 3, 16, 16)
    levels = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_display(images, square(16)), levels)
    assert np.array_equal(to_pixels(images, square(16)), levels.permute(0, 2, 3, 1).numpy())
    assert display_pixels(values.numpy(), square(16)) is not None


def test_people_see_gray_three_times_alpha_on_white_and_three_bands() -> None:
    gray = to_display(torch.full((1, 1, 2, 2), 0.2), square(2, 1))
    assert gray.shape == (1, 3, 2, 2) and (gray == 153).all()
    colors = torch.tensor([1.0, -1.0, 0.0, 0.0]).view(1, 4, 1, 1)  # half transparent
    assert to_display(colors, ImageSpec(1, 1, 4, alpha=True)).flatten().tolist() == [255, 128, 191]
    dark = torch.tensor([-1.0, -1.0]).view(1, 2, 1, 1)  # invisible
    assert to_display(dark, ImageSpec(1, 1, 2, alpha=True)).flatten().tolist() == [255] * 3
    bands = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).view(1, 5, 1, 1)
    five = ImageSpec(1, 1, 5, "float32", 0, 9)
    assert to_display(bands, five).flatten().tolist() == [0, 64, 128]
    assert to_display(bands, five, [4, 0, 3]).flatten().tolist() == [255, 0, 191]
    two = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    assert to_display(two, square(1, 2)).flatten().tolist() == [0, 255, 255]


def test_the_name_of_a_metric_says_what_was_shown() -> None:
    assert [shown_as(image) for image in (square(8), square(8, 1), ImageSpec(8, 8, 1, "uint16"))] == [
        "",
        "gray",
        "gray",
    ]
    assert shown_as(ImageSpec(8, 8, 4, alpha=True)) == "on_white"
    assert shown_as(ImageSpec(8, 8, 2, alpha=True)) == "gray_on_white"
    assert shown_as(square(8, 5)) == "bands_0_1_2"
    assert shown_as(square(8, 5), [4, 2, 0]) == "bands_4_2_0"
