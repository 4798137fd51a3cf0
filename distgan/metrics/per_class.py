"""Metrics by class: kernel distances of each class, and whether generated images show the class of their label."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distgan.metrics import kid
from distgan.metrics.registry import Features

LEAST = 200  # images of a class on each side that its own kernel distance needs


def share_classes(
    real: Features, fake: Features, real_names: Sequence[str], fake_names: Sequence[str]
) -> tuple[Features, Features, list[str]]:
    """Return both sides' images of the classes that both have, with the numbers of `fake`; and names of the others.

    Args:
        real_names, fake_names: Names of classes 0, 1 ... of each side.
    """
    number = {name: i for i, name in enumerate(fake_names)}
    real_labels, fake_labels = labels_of(real), labels_of(fake)
    renumbered = torch.tensor([number.get(name, -1) for name in real_names], device=real_labels.device)
    others = [name for name in real_names if name not in number]
    others += [name for name in fake_names if name not in set(real_names)]

    def only(side: Features, labels: Tensor, kept: Tensor) -> Features:
        return dataclasses.replace(side, points=side.points[kept], logits=None, labels=labels[kept])

    real_labels = renumbered[real_labels]
    shared = renumbered[renumbered >= 0]
    return only(real, real_labels, real_labels >= 0), only(fake, fake_labels, torch.isin(fake_labels, shared)), others


def labels_of(side: Features) -> Tensor:
    """Return the labels of images that have some."""
    assert side.labels is not None
    return side.labels


def class_distances(real: Features, fake: Features, num_classes: int, least: int = LEAST) -> dict[int, float]:
    """Return the kernel distance over all pairs of each class of which both sides have `least` images."""
    distances = {}
    for number in range(num_classes):
        of_class = [side.points[labels_of(side) == number] for side in (real, fake)]
        if min(map(len, of_class)) >= least:
            distances[number] = kid.full(*of_class)[0]
    return distances


def probe_accuracies(real: Features, fake: Features, num_classes: int) -> dict[str, float]:
    """Return accuracies of a linear classifier on features.

    `probe_generated` is its accuracy on generated images when it was trained on real ones: whether they show their
    class. `probe_from_generated` is its accuracy on real images when it was trained on generated ones, which falls with
    missing variety too (a cheap form of the classification accuracy score, Ravuri and Vinyals 2019). `probe_real` is
    the upper bound of both: trained on half of the real images, tested on the other half.
    """
    real_labels, fake_labels = labels_of(real), labels_of(fake)
    shuffled = torch.randperm(len(real.points), generator=torch.Generator().manual_seed(0)).to(real.points.device)
    halves: list[tuple[Tensor, Tensor]] = [(real.points[half], real_labels[half]) for half in shuffled.chunk(2)]
    on_real = train_probe(real.points, real_labels, num_classes)
    on_fake = train_probe(fake.points, fake_labels, num_classes)
    return {
        "probe_generated": on_real.accuracy(fake.points, fake_labels),
        "probe_from_generated": on_fake.accuracy(real.points, real_labels),
        "probe_real": train_probe(*halves[0], num_classes).accuracy(*halves[1]) if len(halves) == 2 else math.nan,
    }


STRENGTHS = tuple(10.0**power for power in range(-4, 4))  # candidates for the strength of the ridge, per image


class Probe(NamedTuple):
    """A linear map of features x: (x - mean) / scale @ weights + base; of classes, the largest score is the class."""

    mean: Tensor
    scale: Tensor
    weights: Tensor
    base: Tensor

    def scores(self, points: Tensor) -> Tensor:
        """Return the values [n, k] of images with features [n, d]."""
        return (points.double() - self.mean) / self.scale @ self.weights + self.base

    def accuracy(self, points: Tensor, labels: Tensor) -> float:
        """Return the share of images with features [n, d] that are classified correctly."""
        return float((self.scores(points).argmax(dim=1) == labels).double().mean())


class Ridge:
    """Ridge regressions on features [n, d], which share what depends on the features alone.

    Their strength is chosen by generalized cross-validation (Golub, Heath and Wahba 1979). A closed form, without
    random numbers or iterations.
    """

    def __init__(self, points: Tensor) -> None:
        x = points.double()
        self._mean, self._scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-8)
        self._x = (x - self._mean) / self._scale
        values, self._vectors = torch.linalg.eigh(self._x.T @ self._x)
        self._values = values.clamp_min(0)

    def fit(self, y: Tensor) -> Probe:
        """Return the regression of values [n, k], float64."""
        base = y.mean(dim=0)
        y = y - base
        values, vectors = self._values, self._vectors
        rotated = vectors.T @ (self._x.T @ y)
        power, num = rotated.square().sum(dim=1), len(self._x)

        def score(strength: float) -> float:
            share = 1 / (values + strength * num)
            residue = y.square().sum() - (power * share * (2 - values * share)).sum()
            return float(residue / (num - 1 - (values * share).sum()).clamp_min(1e-3) ** 2)

        best = min(STRENGTHS, key=score)
        return Probe(self._mean, self._scale, vectors @ (rotated / (values + best * num)[:, None]), base)


def train_probe(points: Tensor, labels: Tensor, num_classes: int) -> Probe:
    """Fit a ridge regression of the classes on features [n, d]."""
    return Ridge(points).fit(torch.nn.functional.one_hot(labels, num_classes).double())
