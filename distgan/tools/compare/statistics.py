"""Means over seeds, and the difference of two recipes, seed by seed, with its interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Quantiles 0.975 of Student's t distribution with 1, 2, ... degrees of freedom.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the standard deviation between them, None of a single one."""

    mean: float
    sd: float | None
    num: int


@dataclass(frozen=True)
class Difference:
    """The mean of a paired difference, and its interval of 95%; None of a single pair."""

    mean: float
    interval: tuple[float, float] | None
    num: int


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and standard deviation; None of no values."""
    if not values:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Return by how much the second exceeds the first, over the seeds that both have; None without such.

    A seed gives both recipes the same order of images and the same latents, so what these do to a value cancels. The
    interval is Student's, of the mean of differences that are normal.
    """
    differences = [second[seed] - first[seed] for seed in first if seed in second]
    found = spread(differences)
    if found is None:
        return None
    if found.sd is None:
        return Difference(found.mean, None, 1)
    reach = t_975(found.num - 1) * found.sd / math.sqrt(found.num)
    return Difference(found.mean, (found.mean - reach, found.mean + reach), found.num)


def t_975(freedom: int) -> float:
    """Return the quantile 0.975 of Student's t distribution, to three digits or better."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964  # the expansion in 1 / freedom around the normal distribution (Abramowitz and Stegun 26.7.5)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))
