"""PSNR and SSIM against closed forms, a slow clear version and scikit-image."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distgan.metrics.psnr_ssim import psnr, ssim


def pictures(seed: int, num: int = 3, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, 3, size, size), generator=generator).to(torch.uint8)


def noisy(clean: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(9))
    return (clean + sigma * noise).clamp(0, 255).round().to(torch.uint8)


def test_psnr_of_a_known_error() -> None:
    clean = torch.full((3, 3, 16, 16), 100.0)
    off = clean + torch.tensor([1.0, 5.0, 25.5])[:, None, None, None]
    assert psnr(off, clean).tolist() == pytest.approx([20 * math.log10(255 / d) for d in (1, 5, 25.5)], rel=1e-12)
    assert psnr(clean, clean).tolist() == [math.inf] * 3
    assert psnr(clean.to(torch.uint8) - 101, clean).tolist() != [math.inf] * 3  # levels do not wrap around


def test_ssim_of_even_pictures_is_that_of_their_levels() -> None:
    """Without any variance, (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b, c1 = 120.0, 90.0, 2.55**2
    found = ssim(torch.full((2, 3, 16, 16), a), torch.full((2, 3, 16, 16), b))
    assert found.tolist() == pytest.approx([(2 * a * b + c1) / (a * a + b * b + c1)] * 2, rel=1e-9)


def test_ssim_is_the_paper_s_formula_window_by_window() -> None:
    clean = pictures(0, num=1, size=13)
    other = noisy(clean, 40)
    x, y = (image[0].double().numpy() for image in (other, clean))
    axis = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    weights = np.outer(axis, axis) / np.outer(axis, axis).sum()
    values = []
    for channel in range(3):
        for row in range(3):
            for column in range(3):
                a, b = (im[channel, row : row + 11, column : column + 11] for im in (x, y))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert ssim(other, clean).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_ssim_is_one_for_the_same_picture_and_falls_with_noise() -> None:
    clean = pictures(1)
    assert torch.allclose(ssim(clean, clean), torch.ones(3).double(), atol=1e-12)
    values = [ssim(noisy(clean, sigma), clean).mean().item() for sigma in (5, 20, 80)]
    assert 1 > values[0] > values[1] > values[2] > 0


def test_each_picture_is_measured_by_itself() -> None:
    clean, other = pictures(2), noisy(pictures(2), 30)
    for measure in (psnr, ssim):
        alone = torch.cat([measure(other[i : i + 1], clean[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(measure(other, clean), alone)


def test_scikit_image_agrees() -> None:
    reference = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    clean, other = pictures(3), noisy(pictures(3), 25)
    for i in range(3):
        a, b = (x[i].permute(1, 2, 0).numpy() for x in (other, clean))
        assert psnr(other, clean)[i].item() == pytest.approx(reference.peak_signal_noise_ratio(b, a, data_range=255))
        expected = reference.structural_similarity(
            a, b, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(other, clean)[i].item() == pytest.approx(expected, rel=1e-6)
