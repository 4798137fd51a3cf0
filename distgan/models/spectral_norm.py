"""Spectral normalization (Miyato et al. 2018): weights divided by their largest singular value."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


class SpectralNorm(nn.Module):
    """Divide a weight [out, ...] by its largest singular value as a matrix [out, the rest].

    The singular value is found by power iteration (algorithm 1 of the paper); `power_iteration_step` makes one
    step. A forward makes none, unlike in torch's own form: the number of D's forwards in one update depends on passes,
    penalties and precision, and the update should not.

    Attributes:
        u, v: Estimates of the singular vectors, [out] and [the rest].
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn_like(rows[:, 0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn_like(rows[0]), dim=0))
        for _ in range(15):
            self.power_iteration_step(weight)

    def forward(self, weight: Tensor) -> Tensor:
        with _without_autocast(weight):
            # Copies, since the next step changes the buffers, perhaps before the gradient of this forward is taken.
            return weight / torch.dot(self.u.clone(), torch.mv(weight.flatten(1), self.v.clone()))

    @torch.no_grad()
    def power_iteration_step(self, weight: Tensor) -> None:
        """Make one step of power iteration."""
        rows = weight.flatten(1)
        self.v.copy_(F.normalize(torch.mv(rows.T, self.u), dim=0))
        self.u.copy_(F.normalize(torch.mv(rows, self.v), dim=0))


def add_spectral_norm(net: nn.Module | None) -> None:
    """Add spectral norm to every convolution, dense layer and embedding of a network."""
    for layer in list(net.modules()) if net is not None else []:
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))


def spectral_norm_layers(net: nn.Module) -> list[tuple[SpectralNorm, Tensor]]:
    """Return the spectral norms of a network, each with the weight that it normalizes."""
    norms = []
    for chain in net.modules():
        if isinstance(chain, parametrize.ParametrizationList):
            weight = chain.original
            assert isinstance(weight, Tensor)
            norms += [(norm, weight) for norm in chain if isinstance(norm, SpectralNorm)]
    return norms


def _without_autocast(like: Tensor) -> contextlib.AbstractContextManager:
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()
