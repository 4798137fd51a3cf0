"""Adversarial losses against closed forms, and what every loss in the table must satisfy."""

import math

import numpy as np
import pytest
import torch

from distgan.losses.adversarial import LOSSES, cross_entropy_d, least_squares_d
from distgan.losses.reconstruction import PIXEL, feature_matching

REAL = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
FAKE = torch.tensor([-0.5, 3.0, 0.25], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


CLOSED_FORMS = {
    "minimax": (
        lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
        lambda r, f: math.log(1 - sigmoid(f)),
    ),
    "non_saturating": (
        lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f)),
        lambda r, f: -math.log(sigmoid(f)),
    ),
    "lsgan": (lambda r, f: (r - 1) ** 2 / 2 + f**2 / 2, lambda r, f: (f - 1) ** 2 / 2),
    "hinge": (lambda r, f: max(0, 1 - r) + max(0, 1 + f), lambda r, f: -f),
    "wasserstein": (lambda r, f: f - r, lambda r, f: -f),
    "rpgan": (
        lambda r, f: -math.log(sigmoid(r - f)),
        lambda r, f: -math.log(sigmoid(f - r)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_closed_form(name: str) -> None:
    d, g = CLOSED_FORMS[name]
    pairs = list(zip(REAL.tolist(), FAKE.tolist()))
    assert LOSSES[name].d(REAL, FAKE).item() == pytest.approx(mean([d(r, f) for r, f in pairs]), rel=1e-12)
    assert LOSSES[name].g(FAKE, REAL).item() == pytest.approx(mean([g(r, f) for r, f in pairs]), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_of_parts_the_loss_is_the_mean_over_images_and_parts(name: str) -> None:
    """Each part of a real image is paired with the same part of the fake."""
    loss, (d, g) = LOSSES[name], CLOSED_FORMS[name]
    real, fake = torch.stack([REAL, FAKE.flip(0)], 1), torch.stack([FAKE, REAL], 1)  # 3 images, 2 parts
    pairs = list(zip(real.flatten().tolist(), fake.flatten().tolist()))
    assert loss.d(real, fake).item() == pytest.approx(mean([d(r, f) for r, f in pairs]), rel=1e-12)
    assert loss.g(fake, real).item() == pytest.approx(mean([g(r, f) for r, f in pairs]), rel=1e-12)


def test_distances_from_the_clean_picture_equal_their_closed_forms() -> None:
    restored, clean = (x.view(1, 3, 1, 1) for x in (REAL, FAKE))
    off = [r - c for r, c in zip(REAL.tolist(), FAKE.tolist())]
    assert PIXEL["l1"](restored, clean).item() == pytest.approx(mean([abs(d) for d in off]), rel=1e-12)
    assert PIXEL["l2"](restored, clean).item() == pytest.approx(mean([d * d for d in off]), rel=1e-12)
    expected = mean([math.sqrt(d * d + 1e-6) for d in off])
    assert PIXEL["charbonnier"](restored, clean).item() == pytest.approx(expected, rel=1e-12)
    for name in PIXEL:
        x = clean.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(PIXEL[name](x, clean), x)
        assert (gradient == 0).all()  # at the tip, too
        x = (clean + 0.1 * torch.randn_like(clean)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, name=name: PIXEL[name](x, clean), x)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_point_the_right_way_and_are_exact(name: str) -> None:
    """D raises real and lowers fake logits; G raises fake ones; finite differences agree."""
    loss = LOSSES[name]
    real, fake = torch.tensor([0.3, -0.4]).double().requires_grad_(), torch.tensor([0.1, 0.2]).double().requires_grad_()
    for value in torch.autograd.grad(loss.d(real, fake), real):
        assert (value < 0).all()
    (towards,) = torch.autograd.grad(loss.d(real, fake), fake)
    assert (towards > 0).all()
    (towards,) = torch.autograd.grad(loss.g(fake, real), fake)
    assert (towards < 0).all()
    assert torch.autograd.gradcheck(loss.d, (real, fake))
    assert torch.autograd.gradcheck(lambda f: loss.g(f, real), (fake,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_is_finite_at_extreme_logits(name: str, extreme: float) -> None:
    real = torch.full((4,), extreme, requires_grad=True)
    fake = torch.full((4,), -extreme, requires_grad=True)
    d, g = LOSSES[name].d(real, fake), LOSSES[name].g(fake, real)
    gradients = torch.autograd.grad(d, (real, fake)) + torch.autograd.grad(g, fake)
    assert all(x.isfinite().all() for x in (d, g, *gradients))


def test_only_paired_losses_look_at_real_logits_in_the_generator_step() -> None:
    for name, loss in LOSSES.items():
        if loss.paired:
            assert loss.g(FAKE, REAL) != loss.g(FAKE, REAL + 1), name
        else:
            assert loss.g(FAKE, None) == loss.g(FAKE, REAL), name


def test_label_smoothing_is_one_sided() -> None:
    """D is to say 0.8 of real images, and still 0 of fakes."""
    pairs = list(zip(REAL.tolist(), FAKE.tolist()))
    entropy = [
        -0.8 * math.log(sigmoid(r)) - 0.2 * math.log(1 - sigmoid(r)) - math.log(1 - sigmoid(f)) for r, f in pairs
    ]
    assert cross_entropy_d(REAL, FAKE, smooth=0.2).item() == pytest.approx(mean(entropy), rel=1e-12)
    squares = [(r - 0.8) ** 2 / 2 + f**2 / 2 for r, f in pairs]
    assert least_squares_d(REAL, FAKE, smooth=0.2).item() == pytest.approx(mean(squares), rel=1e-12)


@pytest.mark.parametrize("group", [0, 2, 3, 6])
def test_feature_matching_compares_the_means_of_groups(group: int) -> None:
    rng = np.random.default_rng(0)
    real, fake = ([rng.normal(size=(6, 4, 3, 3)), rng.normal(size=(6, 5))] for _ in range(2))
    size, layers = group or 6, []
    for r, f in zip(real, fake):
        starts = range(0, 6, size)
        layers.append(np.mean([(r[i : i + size].mean(0) - f[i : i + size].mean(0)) ** 2 for i in starts]))
    given = [[torch.from_numpy(x) for x in side] for side in (real, fake)]
    assert feature_matching(*given, group).item() == pytest.approx(np.mean(layers), rel=1e-12)
    assert feature_matching(given[0], given[0], group) == 0
    x = given[1][1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: feature_matching(given[0][1:], [x], group), x)
