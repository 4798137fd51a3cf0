"""A linear classifier on features: what it makes of generated images tells whether they show their class."""

from typing import NamedTuple

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-4, 4))  # of the ridge, to choose from, per image


class Probe(NamedTuple):
    """Classifies features x by the largest of (x - mean) / scale @ weights + base."""

    mean: Tensor
    scale: Tensor
    weights: Tensor
    base: Tensor

    def accuracy(self, points: Tensor, labels: Tensor) -> float:
        """Share of the images with features [n, d] that are taken for their class."""
        scores = (points.double() - self.mean) / self.scale @ self.weights + self.base
        return float((scores.argmax(dim=1) == labels).double().mean())


def train_probe(points: Tensor, labels: Tensor, num_classes: int) -> Probe:
    """Ridge regression of the classes on features [n, d], with the strength that generalised cross-validation likes.

    Golub, Heath and Wahba 1979. A closed form: nothing is drawn, nothing has to converge.
    """
    x = points.double()
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-8)
    x = (x - mean) / scale
    y = torch.nn.functional.one_hot(labels, num_classes).double()
    base = y.mean(dim=0)
    y = y - base
    values, vectors = torch.linalg.eigh(x.T @ x)
    values = values.clamp_min(0)
    turned = vectors.T @ (x.T @ y)
    power, num = turned.square().sum(dim=1), len(x)

    def score(strength: float) -> float:
        share = 1 / (values + strength * num)
        residue = y.square().sum() - (power * share * (2 - values * share)).sum()
        return float(residue / (num - 1 - (values * share).sum()).clamp_min(1e-3) ** 2)

    best = min(STRENGTHS, key=score)
    return Probe(mean, scale, vectors @ (turned / (values + best * num)[:, None]), base)
