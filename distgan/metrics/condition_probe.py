"""Whether generated images show their conditions: a linear probe of features, trained on real images."""

import math

import numpy as np
import torch
from torch import Tensor

from distgan.condition_spec import Conditions, Field
from distgan.metrics.per_class import Probe, Ridge

LEAST = 20  # images that have a condition, on each side, for values of it


def probe_conditions(
    conditions: Conditions, real: tuple[Tensor, np.ndarray], fake: tuple[Tensor, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return how well a ridge regression, trained on real images, finds each condition in generated ones.

    Of a number: `error`, the mean distance of prediction and condition in the number's own unit, and `r2`, the share of
    the conditions' variance that the predictions explain, which is below 0 where they are worse than the mean. Of a
    vector, `r2` over all of its numbers; of flags and classes, `accuracy`. The same with `_real`: trained on one half
    of the real images and tested on the other one, the bound on what generated images can reach.

    Args:
        real, fake: Features [n, d] and values of conditions [n, R]. Images that lack a condition do not count for it.
    """
    found = {}
    whole: dict[bytes, Ridge] = {}  # by which images have a condition
    for i, one in enumerate(conditions.fields):
        (x, y), (fake_x, fake_y) = (_known(points, conditions.split(values)[i]) for points, values in (real, fake))
        if min(len(x), len(fake_x)) < LEAST:
            continue
        mask = np.isnan(conditions.split(real[1])[i]).any(axis=1).tobytes()
        if mask not in whole:
            whole[mask] = Ridge(x)
        shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        half, other = (part.to(x.device) for part in shuffled.chunk(2))
        on_half = Ridge(x[half]).fit(_targets(one, y[half]))
        values = _scores(one, whole[mask].fit(_targets(one, y)), fake_x, fake_y)
        found[one.name] = values | {f"{k}_real": v for k, v in _scores(one, on_half, x[other], y[other]).items()}
    return found


def _known(points: Tensor, values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the images that have a condition: features, and values [n, length] in float64."""
    known = torch.from_numpy(~np.isnan(values).any(axis=1)).to(points.device)
    return points[known], torch.from_numpy(values).double().to(points.device)[known]


def _targets(one: Field, y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y[:, 0].long(), len(one.classes)).double() if one.kind == "class" else y


def _scores(one: Field, probe: Probe, points: Tensor, y: Tensor) -> dict[str, float]:
    if one.kind == "class":
        return {"accuracy": probe.accuracy(points, y[:, 0].long())}
    predicted = probe.scores(points)
    if one.kind == "flag":
        return {"accuracy": float(((predicted > 0.5) == (y > 0.5)).double().mean())}
    spread = float((y - y.mean(dim=0)).square().sum())
    r2 = 1 - float((predicted - y).square().sum()) / spread if spread else math.nan
    return {"r2": r2} if one.kind == "vector" else {"error": float((predicted - y).abs().mean()), "r2": r2}
