"""Values that change over a run: pure functions of how many images it has seen."""

import math
from collections.abc import Sequence


def value_at(images: int, ends: Sequence[float], ramp: int, shape: str) -> float:
    """The first of `ends` at the start, the last after `ramp` images, on a curve between; one end is a constant."""
    first, last = ends[0], ends[-1]
    if first == last or images >= ramp:
        return last
    done = images / ramp
    if shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return first + (last - first) * done


def warm_up(images: int, duration: int) -> float:
    """A factor that rises from 0 to 1 over the first `duration` images."""
    return min(1.0, images / duration) if duration else 1.0
