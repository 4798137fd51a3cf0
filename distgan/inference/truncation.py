"""Truncation: fewer kinds of images, and better ones.

A generator with styles moves w toward its mean (Karras et al. 2019, StyleGAN, appendix B; the mean of a class for one
with classes). Others get latents from a normal distribution that is cut off (Brock et al. 2019, BigGAN, section 3.1).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from distgan.errors import ConfigError
from distgan.inference import sampling
from distgan.inference.trained_generator import TrainedGenerator

NUM, LEAST = 10_000, 1_000  # latents whose w are averaged, and at least for each class
SEED = 0  # of these
HIGHEST = 10.0  # deviations: beyond, nothing is cut


def truncated(G: TrainedGenerator, strength: float) -> TrainedGenerator:
    """Return a generator whose images are truncated.

    Args:
        strength: Of a generator with styles, the share of w's way from its mean that is kept: 0 is one image (of each
            class), and 1 the generator itself. Of others, the deviations at which latents are cut off.

    Raises:
        ConfigError: The strength is none, or the generator restores images.
    """
    if G.restores:
        raise ConfigError("--truncation is of images made of noise: leave it out with --input")
    if not 0 <= strength <= HIGHEST:
        raise ConfigError(f"--truncation {strength:g}: 0 to {HIGHEST:g}, such as 0.7")
    if not hasattr(G.net, "styles"):
        return TrainedGenerator(TruncatedLatents(G.net, strength), G.spec, G.origin)
    if strength == 1:
        return G
    return TrainedGenerator(TruncatedStyles(G.net, mean_styles(G), strength), G.spec, G.origin)


class TruncatedStyles(nn.Module):
    """G with styles, with w moved toward its mean: `center` [1, w_dim], or that of each class, [K, w_dim]."""

    def __init__(self, net: nn.Module, center: Tensor, strength: float) -> None:
        super().__init__()
        self.net, self.strength, self.is_of_classes = net, strength, len(center) > 1
        self.register_buffer("center", center)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        center = self.get_buffer("center")
        if self.is_of_classes and labels is not None:
            center = center[labels]
        styles = self.net.styles(z, labels)  # type: ignore[operator]  # which `truncated` asked for
        return self.net.synthesize(center[:, None].lerp(styles, self.strength))  # type: ignore[operator]


class TruncatedLatents(nn.Module):
    """G of latents from a normal distribution that is cut off, each a rising function of the latent that is given."""

    def __init__(self, net: nn.Module, deviations: float) -> None:
        super().__init__()
        self.net, self.inside = net, math.erf(deviations / math.sqrt(2))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        share = torch.erf(z.double() / math.sqrt(2)) * self.inside
        return self.net((math.sqrt(2) * torch.erfinv(share)).to(z.dtype), labels)


@torch.no_grad()
def mean_styles(G: TrainedGenerator) -> Tensor:
    """Return the mean w of a generator with styles: of each class [K, w_dim], or of all conditions [1, w_dim]."""
    classes = G.num_classes or 1
    num = NUM if classes == 1 else max(LEAST, NUM // classes)
    numbers = np.arange(num)
    z = sampling.latents(SEED, numbers, G.z_dim).to(G.device)
    mapping = G.net.mapping
    if G.conditions is not None:
        vectors = torch.from_numpy(G.conditions.encoded(SEED, numbers)).to(G.device)
        return mapping(z, vectors).double().mean(0, keepdim=True).float()  # type: ignore[operator]
    means = []
    for label in range(classes):
        labels = torch.full((num,), label, device=G.device) if G.num_classes else None
        means.append(mapping(z, labels).double().mean(0))  # type: ignore[operator]
    return torch.stack(means).float()
