"""Path length regularization of a generator with styles (Karras et al. 2020, StyleGAN2, section 3.2, eq. 4)."""

import math

import torch
from torch import Tensor

DECAY = 0.01  # how far the running mean moves toward each new one


def path_lengths(images: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """Return how far images move when their styles do, |J^T y| for a random direction y of each; [B], differentiable.

    Args:
        images: [B, C, H, W], made of `styles`.
        styles: [B, L, W], the style of each layer; the length is the root of the mean over layers.
        noise: Standard normal numbers, [B, C H W].
    """
    direction = noise.view_as(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * direction).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
