"""Embed what an image is to show: a class number, or a vector of conditions."""

import math

import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput


class VectorEmbedding(nn.Module):
    """Map vectors [B, V] to [B, length] by a matrix [V, length], without bias: of a one-hot vector, this is its row.

    Initial outputs have a second moment of one, as rows of `nn.Embedding` have.
    """

    def __init__(self, vectors: VectorInput, length: int) -> None:
        super().__init__()
        self.embedding_dim = length
        self.weight = nn.Parameter(torch.randn(vectors.length, length) / math.sqrt(vectors.second_moment))

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.to(self.weight.dtype) @ self.weight


def label_embedding(labels: int | VectorInput, length: int) -> nn.Embedding | VectorEmbedding | None:
    """Return a layer that maps class numbers [B] or vectors [B, V] to [B, length]; None where there are no classes.

    Args:
        labels: Number of classes, or the kind of vectors.
    """
    if isinstance(labels, VectorInput):
        return VectorEmbedding(labels, length)
    return nn.Embedding(labels, length) if labels else None


def blank_labels(labels: int | VectorInput, num: int, device: torch.device) -> Tensor | None:
    """Return labels that mean nothing, for passes whose results are not used; None where there are none."""
    if isinstance(labels, VectorInput):
        return torch.zeros(num, labels.length, device=device)
    return torch.zeros(num, device=device, dtype=torch.long) if labels else None


def label_moment(labels: int | VectorInput) -> float:
    """Return the mean of the squared length of the vectors, which is 1 of the one-hot vectors of classes."""
    return labels.second_moment if isinstance(labels, VectorInput) else 1.0
