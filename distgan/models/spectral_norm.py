"""Spectral normalization (Miyato et al. 2018): weights divided by their largest singular value.

What is done for all layers is done in few calls, since a call costs a GPU more than these small products do.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distgan.models.label_embedding import VectorEmbedding


class SpectralNorm(nn.Module):
    """Divide a weight [out, ...] by its largest singular value as a matrix [out, the rest].

    The singular value is found by power iteration (algorithm 1 of the paper); `power_iteration_step` makes one
    step. A forward makes none, unlike in torch's own form: the number of D's forwards in one update depends on passes,
    penalties and precision, and the update should not.

    Attributes:
        u, v: Estimates of the singular vectors, [out] and [the rest].
        normalized: The result, while `normalized_once` keeps it.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.normalized: Tensor | None = None
        self.register_buffer("u", F.normalize(torch.randn_like(rows[:, 0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn_like(rows[0]), dim=0))
        for _ in range(15):
            power_iteration_step([(self, weight)])

    def forward(self, weight: Tensor) -> Tensor:
        return normalize([(self, weight)])[0] if self.normalized is None else self.normalized


Layers = Sequence[tuple[SpectralNorm, Tensor]]  # spectral norms, each with the weight that it normalizes


def normalize(layers: Layers) -> list[Tensor]:
    """Return the weights, each divided by its largest singular value, u^T W v; differentiable twice in the weights."""
    with _without_autocast(layers[0][1]):
        # Copies, since the next step changes the buffers, perhaps before the gradient of this forward is taken.
        us = torch.cat([norm.u for norm, _ in layers]).split([len(norm.u) for norm, _ in layers])
        vs = torch.cat([norm.v for norm, _ in layers]).split([len(norm.v) for norm, _ in layers])
        values = [torch.dot(u, torch.mv(weight.flatten(1), v)) for u, v, (_, weight) in zip(us, vs, layers)]
        return [weight * factor for factor, (_, weight) in zip(torch.stack(values).reciprocal(), layers)]


@contextlib.contextmanager
def normalized_once(layers: Layers) -> Iterator[None]:
    """Normalize the weights once for all forwards inside, which share the gradient of that."""
    for (norm, _), weight in zip(layers, normalize(layers) if layers else []):
        norm.normalized = weight
    try:
        yield
    finally:
        for norm, _ in layers:
            norm.normalized = None


@torch.no_grad()
def power_iteration_step(layers: Layers) -> None:
    """Make one step of power iteration for each layer."""
    rows = [weight.flatten(1) for _, weight in layers]
    us, vs = [norm.u for norm, _ in layers], [norm.v for norm, _ in layers]
    _set_normalized(vs, [torch.mv(matrix.T, u) for matrix, u in zip(rows, us)])
    _set_normalized(us, [torch.mv(matrix, v) for matrix, v in zip(rows, vs)])


def _set_normalized(targets: list[Tensor], vectors: list[Tensor]) -> None:
    """Copy vectors to `targets`, each divided by its length; zeros stay zeros."""
    lengths = torch._foreach_clamp_min(torch._foreach_norm(vectors), 1e-12)
    torch._foreach_copy_(targets, torch._foreach_div(vectors, lengths))


def add_spectral_norm(net: nn.Module | None) -> None:
    """Add spectral norm to every convolution, dense layer and embedding of a network."""
    for layer in list(net.modules()) if net is not None else []:
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding | VectorEmbedding):
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
