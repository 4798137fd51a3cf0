"""Adversarial losses on logits. Each is a pair of functions: what D minimizes and what G minimizes.

To add one, write the two functions and a line in `LOSSES`; the tests pick it up. Both get logits of real images and of
fakes, [B] each or [B, P] where D judges P parts of each, and return the mean over the batch and the parts. A loss whose
G part looks at real logits too is `paired`: real and fake images at the same place of the batch are compared, so they
share position and label.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

# softplus(-x) = -log(sigmoid(x)) and softplus(x) = -log(1 - sigmoid(x)): sigmoid and logarithm, finite for every logit.


class Loss(NamedTuple):
    d: Callable[..., Tensor]  # (real, fake) -> what D minimizes; some take `smooth` too
    g: Callable[[Tensor, Tensor | None], Tensor]  # (fake, real or None) -> what G minimizes
    paired: bool = False


def cross_entropy_d(real: Tensor, fake: Tensor, smooth: float = 0.0) -> Tensor:
    """Goodfellow et al. 2014, eq. 1: D maximizes log D(x) + log(1 - D(G(z))).

    With `smooth`, D is to say 1 - smooth of real images (one-sided label smoothing, Salimans et al. 2016, section 3.4):
    (1 - s) softplus(-real) + s softplus(real) = softplus(-real) + s real.
    """
    return (softplus(-real) + smooth * real).mean() + softplus(fake).mean()


def saturating_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Goodfellow et al. 2014, eq. 1 as it stands: G minimizes log(1 - D(G(z))), whose gradient fades when D wins."""
    return -softplus(fake).mean()


def non_saturating_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Goodfellow et al. 2014, section 3: G maximizes log D(G(z)) instead."""
    return softplus(-fake).mean()


def least_squares_d(real: Tensor, fake: Tensor, smooth: float = 0.0) -> Tensor:
    """Mao et al. 2017, eq. 9, with targets 1 (less `smooth`) for real and 0 for fake."""
    return (real - 1 + smooth).square().mean() / 2 + fake.square().mean() / 2


def least_squares_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    return (fake - 1).square().mean() / 2


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """Lim and Ye 2017; Miyato et al. 2018, eq. 16."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """Arjovsky et al. 2017, eq. 2; D needs a gradient penalty or weight clipping to stay Lipschitz."""
    return fake.mean() - real.mean()


def critic_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """G raises the score of its images: the G side of Wasserstein and hinge."""
    return -fake.mean()


def relativistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """Jolicoeur-Martineau 2018, pairing form; with R1 and R2 the objective of Huang et al. 2024, eq. 2."""
    return softplus(fake - real).mean()


def relativistic_g(fake: Tensor, real: Tensor | None = None) -> Tensor:
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
