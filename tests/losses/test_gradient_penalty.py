"""Penalties against closed forms on critics whose gradient is known."""

import pytest
import torch
from torch import Tensor, nn

from distgan.losses.gradient_penalty import clip_weights, gradient_penalty, is_due, score, squared_gradient


class Linear(nn.Module):
    """D(x) = w . x, whose gradient is w everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 4, dtype=torch.float64))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return (images * self.w).sum((1, 2, 3))


class Quadratic(Linear):
    """D(x) = w . x^2 / 2, whose gradient is w * x."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return (images.square() * self.w).sum((1, 2, 3)) / 2


def batch(seed: int = 0) -> Tensor:
    return torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_squared_gradient_of_a_linear_critic_is_its_squared_norm() -> None:
    D, images = Linear(), batch().requires_grad_()
    penalty = squared_gradient(D(images), images)
    assert penalty.item() == pytest.approx(D.w.square().sum().item(), rel=1e-12)
    penalty.backward()
    assert torch.allclose(D.w.grad, 2 * D.w)  # it can be minimised


def test_squared_gradient_sums_over_pixels_and_averages_over_the_batch() -> None:
    D, images = Quadratic(), batch().requires_grad_()
    expected = (D.w * images).square().flatten(1).sum(1).mean()
    assert squared_gradient(D(images), images).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_penalty_measures_between_the_images() -> None:
    D, real, fake, mix = Quadratic(), batch(0), batch(1), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    at = real + (fake - real) * mix[:, None, None, None]
    expected = ((D.w * at).flatten(1).norm(dim=1) - 1).square().mean()
    assert gradient_penalty(D, real, fake, None, mix).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_penalty_vanishes_at_unit_slope_and_can_be_minimised() -> None:
    D = Linear()
    with torch.no_grad():
        D.w /= D.w.norm()
    mix = torch.rand(5).double()
    penalty = gradient_penalty(D, batch(0), batch(1), None, mix)
    assert penalty.item() == pytest.approx(0, abs=1e-20)
    with torch.no_grad():
        D.w *= 3
    gradient_penalty(D, batch(0), batch(1), None, mix).backward()
    assert torch.allclose(D.w.grad, 2 * (3 - 1) * D.w / 3)


class Patches(Linear):
    """Two verdicts, of the left and of the right half: D(x) = (w . x on the left, w . x on the right)."""

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return (images * self.w).unflatten(3, (2, 2)).sum((1, 2, 4))


def test_of_parts_the_mean_is_the_score_whose_gradient_counts() -> None:
    """Then D's gradient is w / 2 everywhere, whichever of the parts a pixel belongs to."""
    D, images = Patches(), batch().requires_grad_()
    logits = D(images)
    assert logits.shape == (5, 2)
    assert torch.allclose(score(logits), (images * D.w).sum((1, 2, 3)) / 2)
    slope = D.w.norm().item() / 2
    assert squared_gradient(logits, images).item() == pytest.approx(slope**2, rel=1e-12)
    penalty = gradient_penalty(D, batch(0), batch(1), None, torch.rand(5).double())
    assert penalty.item() == pytest.approx((slope - 1) ** 2, rel=1e-12)
    whole = Linear()(batch())
    assert torch.equal(score(whole), whole)


def test_clipping_bounds_every_weight() -> None:
    D = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    clip_weights(D, 0.01)
    assert max(p.abs().max().item() for p in D.parameters()) <= 0.01
    inside = [p.clone() for p in D.parameters()]
    clip_weights(D, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(inside, D.parameters()))


def test_a_lazy_penalty_is_due_as_a_function_of_images() -> None:
    assert [is_due(images, 8, 4) for images in range(0, 80, 8)] == [True, False, False, False] * 2 + [True, False]
    assert all(is_due(images, 8, 1) for images in range(0, 80, 8))
