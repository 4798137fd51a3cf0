"""Whether generated images show the class that they were asked for, and how well each class is made."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distgan.metrics import kid
from distgan.metrics.registry import Features

LEAST = 200  # images of a class on each side for a kernel distance of its own


def share_classes(
    real: Features, fake: Features, real_names: Sequence[str], fake_names: Sequence[str]
) -> tuple[Features, Features, list[str]]:
    """Both sides' images of the classes that both name, by the numbers that these have in `fake`; names of the others.

    Args:
        real_names, fake_names: Names of classes 0, 1 ... of each side.
    """
    number = {name: i for i, name in enumerate(fake_names)}
    renumbered = torch.tensor([number.get(name, -1) for name in real_names])
    others = [name for name in real_names if name not in number]
    others += [name for name in fake_names if name not in set(real_names)]

    def only(side: Features, labels: Tensor, known: Tensor) -> Features:
        return dataclasses.replace(side, points=side.points[known], logits=None, labels=labels[known])

    labels = renumbered[real.labels]
    shared = renumbered[renumbered >= 0]
    return only(real, labels, labels >= 0), only(fake, fake.labels, torch.isin(fake.labels, shared)), others


def class_distances(real: Features, fake: Features, num_classes: int, least: int = LEAST) -> dict[int, float]:
    """Kernel distance over all pairs for each class of which both sides have `least` images."""
    found = {}
    for number in range(num_classes):
        own = [side.points[side.labels == number] for side in (real, fake)]
        if min(map(len, own)) >= least:
            found[number] = kid.full(*own)[0]
    return found


def probe_accuracies(real: Features, fake: Features, num_classes: int) -> dict[str, float]:
    """What a linear classifier on features makes of the images.

    `probe_generated` is its accuracy on generated images when it was trained on real ones: whether they show their
    class. `probe_from_generated` is its accuracy on real images when it was trained on generated ones, which misses
    variety too (a cheap form of the classification accuracy score, Ravuri and Vinyals 2019). `probe_real` is the bound
    for both: trained on half of the real images, tested on the other half.
    """
    shuffled = torch.randperm(len(real.points), generator=torch.Generator().manual_seed(0))
    halves: list[tuple[Tensor, Tensor]] = [(real.points[half], real.labels[half]) for half in shuffled.chunk(2)]
    on_real = train_probe(real.points, real.labels, num_classes)
    on_fake = train_probe(fake.points, fake.labels, num_classes)
    return {
        "probe_generated": on_real.accuracy(fake.points, fake.labels),
        "probe_from_generated": on_fake.accuracy(real.points, real.labels),
        "probe_real": train_probe(*halves[0], num_classes).accuracy(*halves[1]) if len(halves) == 2 else math.nan,
    }


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
