"""Penalties on D's gradient or weights, which keep it smooth. All in float32, on images as D sees them."""

import torch
from torch import Tensor, nn


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """E ||dD/dx||^2, the sum over pixels and channels, the mean over the batch.

    R1 on real images (Mescheder et al. 2018, eq. 9) and R2 on fakes (eq. 10) are gamma / 2 times this. `images` must
    have required a gradient when `logits` were computed from them, without mixing samples (no batch norm in D).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def gradient_penalty(D: nn.Module, real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor) -> Tensor:
    """E (||dD/dx|| - 1)^2 at random points between real and fake images (Gulrajani et al. 2017, eq. 3).

    Args:
        mix: Where each point lies, uniform in 0..1; [B].
    """
    between = torch.lerp(real, fake, mix.to(real.dtype)[:, None, None, None]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(between, labels).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


@torch.no_grad()
def clip_weights(D: nn.Module, limit: float) -> None:
    """Clamp every weight to -limit..limit after D's step (Arjovsky et al. 2017, algorithm 1)."""
    for parameter in D.parameters():
        parameter.clamp_(-limit, limit)


def is_due(images: int, batch: int, every: int) -> bool:
    """Whether the D step that begins at `images` applies a lazy penalty, which it then does `every` times as strongly.

    Karras et al. 2020 (StyleGAN2), section 3.1.
    """
    return images // batch % every == 0
