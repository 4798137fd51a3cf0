"""Penalties on D's gradient or weights, which keep D smooth. All are on images as D sees them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def score(logits: Tensor) -> Tensor:
    """Return one number for each image, [B]: its logit, or the mean of its logits [B, P] where D has P patches."""
    return logits if logits.ndim == 1 else logits.mean(1)


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Return E ||dD/dx||^2 of D's score: the sum over pixels and channels, the mean over the batch.

    R1 on real images (Mescheder et al. 2018, eq. 9) and R2 on fakes (eq. 10) are gamma / 2 times this. `images` must
    have required a gradient when `logits` were computed from them, without mixing samples (no batch norm in D).
    """
    (gradient,) = torch.autograd.grad(score(logits).sum(), images, create_graph=True)
    return mean_square(gradient)


def finite_squared_gradient(logits: Tensor, moved: Tensor, sigma: float) -> Tensor:
    """Estimate E ||dD/dx||^2 by the logits of images and of the same images with noise of deviation `sigma`.

    The square of a difference over sigma is the square of the slope in a random direction, which is the squared norm of
    the gradient on average (for small sigma). It needs first derivatives alone. In APT (Lin et al. 2025), which calls
    it approximated R1, the division by sigma^2 is part of the weight.
    """
    return ((score(moved) - score(logits)) / sigma).square().mean()


def gradient_penalty(
    D: Callable[[Tensor, Tensor | None], Tensor], real: Tensor, fake: Tensor, labels: Tensor | None, mix: Tensor
) -> Tensor:
    """Return E (||dD/dx|| - 1)^2 of D's score at points between real and fake images (Gulrajani et al. 2017, eq. 3).

    Args:
        mix: Share of the fake image in each point, uniform in 0..1; [B].
    """
    points = between(real, fake, mix).requires_grad_()
    (gradient,) = torch.autograd.grad(score(D(points, labels)).sum(), points, create_graph=True)
    return distance_from_one(gradient)


def traced_gradient(D: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return dD/dx of D's score for each image, and the logits, so that torch.compile can differentiate them again.

    A compiled network has gradients of the first order only, and a call of torch.autograd.grad breaks the graph around
    it (torch 2.13). Eager code does less work with torch.autograd.grad.
    """

    def summed(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = D(x)
        return score(logits).sum(), logits

    return torch.func.grad(summed, has_aux=True)(images)


def mean_square(gradient: Tensor) -> Tensor:
    """Return E ||gradient||^2."""
    return gradient.square().flatten(1).sum(1).mean()


def distance_from_one(gradient: Tensor) -> Tensor:
    """Return E (||gradient|| - 1)^2."""
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def between(real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return points on the lines from real images to fakes, at the shares `mix`, [B]."""
    return torch.lerp(real, fake, mix.to(real.dtype)[:, None, None, None]).detach()


@torch.no_grad()
def clip_weights(D: nn.Module, limit: float) -> None:
    """Clamp every trained weight to -limit..limit after D's step (Arjovsky et al. 2017, algorithm 1)."""
    for parameter in D.parameters():
        if parameter.requires_grad:  # a frozen one stays as it is
            parameter.clamp_(-limit, limit)


def is_due(images: int, batch: int, every: int) -> bool:
    """Return whether the D step that starts at `images` applies a lazy penalty, which is then scaled by `every`.

    Lazy regularization: Karras et al. 2020 (StyleGAN2), section 3.1.
    """
    return images // batch % every == 0
