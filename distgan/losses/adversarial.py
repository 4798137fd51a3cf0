"""Adversarial losses on logits. Each is a pair of functions, D's loss and G's loss.

To add one, write the two functions and a line in `LOSSES`; the tests pick it up (docs/plugins.md: from a file of your
own). Both get logits of real images and of
fakes, [B] each, or [B, P] where D gives a logit for each of P patches, and return the mean over the batch and the
patches. A loss whose G part needs real logits too is `paired`: real and fake images at the same place of the batch are
compared, so they share position and label.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

# softplus(-x) = -log(sigmoid(x)) and softplus(x) = -log(1 - sigmoid(x)): sigmoid and logarithm, finite for every logit.


class Loss(NamedTuple):
    """An adversarial loss.

    Attributes:
        d: (real, fake) -> D's loss; some take `smooth` too.
        g: (fake, real or None) -> G's loss; with `options`, both take these too.
        paired: Whether `g` needs real logits.
        options: Dataclass of its own settings, of which both get an object as `options`; None without any.
    """

    d: Callable[..., Tensor]
    g: Callable[..., Tensor]
    paired: bool = False
    options: type | None = None


def cross_entropy_d(real: Tensor, fake: Tensor, smooth: float = 0.0) -> Tensor:
    """Return the cross-entropy loss of D, which maximizes log D(x) + log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1).

    With `smooth`, D's target for real images is 1 - smooth (one-sided label smoothing, Salimans et al. 2016, section
    3.4): (1 - s) softplus(-real) + s softplus(real) = softplus(-real) + s real.
    """
    return (softplus(-real) + smooth * real).mean() + softplus(fake).mean()


def saturating_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return log(1 - D(G(z))), whose gradient vanishes when D wins (Goodfellow et al. 2014, eq. 1)."""
    return -softplus(fake).mean()


def non_saturating_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return -log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


def least_squares_d(real: Tensor, fake: Tensor, smooth: float = 0.0) -> Tensor:
    """Return D's squared error from the targets 1 - smooth for real and 0 for fake (Mao et al. 2017, eq. 9)."""
    return (real - 1 + smooth).square().mean() / 2 + fake.square().mean() / 2


def least_squares_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the squared error of D's logits of fakes from the target 1 (Mao et al. 2017, eq. 9)."""
    return (fake - 1).square().mean() / 2


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of D (Lim and Ye 2017; Miyato et al. 2018, eq. 16)."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return the critic's loss (Arjovsky et al. 2017, eq. 2).

    D needs a gradient penalty or weight clipping to stay Lipschitz.
    """
    return fake.mean() - real.mean()


def critic_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the negative mean logit of fakes, G's loss of Wasserstein and hinge."""
    return -fake.mean()


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """Return D's relativistic pairing loss (Jolicoeur-Martineau 2018; with R1 and R2, Huang et al. 2024, eq. 2)."""
    return softplus(fake - real).mean()


def relativistic_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return G's relativistic pairing loss."""
    assert real is not None  # `paired` says so
    return softplus(real - fake).mean()


LOSSES: dict[str, Loss] = {
    "minimax": Loss(cross_entropy_d, saturating_g),
    "non_saturating": Loss(cross_entropy_d, non_saturating_g),
    "lsgan": Loss(least_squares_d, least_squares_g),
    "hinge": Loss(hinge_d, critic_g),
    "wasserstein": Loss(wasserstein_d, critic_g),
    "rpgan": Loss(relativistic_d, relativistic_g, paired=True),
}


def open_loss(name: str, options: Mapping[str, object]) -> Loss:
    """Return a loss of `LOSSES` with its own settings given to both functions."""
    loss = LOSSES[name]
    if loss.options is None:
        return loss
    own = loss.options(**options)
    return loss._replace(d=functools.partial(loss.d, options=own), g=functools.partial(loss.g, options=own))
