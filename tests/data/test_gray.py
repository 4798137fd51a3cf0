"""Pictures without colour are counted where their pixels are."""

import numpy as np
import torch

from distgan.evaluation.measure import GRAY_LEVELS, count_gray


def test_a_picture_is_grey_by_its_worst_pixel() -> None:
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 240, (5, 8, 8, 1), np.uint8), 3, axis=3)
    for number, apart in enumerate((0, GRAY_LEVELS, GRAY_LEVELS + 1, 0, 0)):
        pixels[number, 3, 4] = [100, 100 + apart, 100]
    pixels[4, 7, 7] = [255, 0, 255]  # a difference that uint8 would wrap
    assert int(count_gray(torch.from_numpy(pixels).permute(0, 3, 1, 2))) == 3
