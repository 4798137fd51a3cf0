"""PSNR and SSIM of restored images and clean ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, 10 log10(255^2 / mean square error), float64 [B].

    It is infinite where there is no error.

    Args:
        restored, clean: Levels 0..255, of any type; [B, C, H, W].
    """
    error = (restored.double() - clean.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error)


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity, at most 1 (Wang et al. 2004), float64 [B].

    It is the mean over channels and all windows inside the image. Windows are Gaussians of 1.5 pixels cut to 11 x 11,
    and K1 = 0.01, K2 = 0.03, as in the paper.

    Args:
        restored, clean: Levels 0..255, of any type; [B, C, H, W], with sides of at least 11 pixels.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=clean.device) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = window / window.sum()
    x, y = (images.double().flatten(0, 1)[:, None] for images in (restored, clean))

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x.square(), mean(y * y) - mean_y.square()
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return similarity.unflatten(0, restored.shape[:2]).flatten(1).mean(1)
