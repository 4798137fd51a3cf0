"""Streams for tests, from plain keywords."""

from collections.abc import Callable

import numpy as np

from distgan.data.dataset import Dataset, RankInfo
from distgan.data.decode import DecodeOptions
from distgan.data.loader import Stream, StreamOptions
from distgan.data.shuffle import ShuffleOrder
from distgan.image_spec import square

DECODE = ("filter", "crop", "max_pixels", "scaled")


def make_stream(
    data: Dataset,
    plan: ShuffleOrder,
    *,
    batch: int = 8,
    resolution: int = 16,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    draw: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda positions: (),
    **options: object,
) -> Stream:
    """A stream; the other options are fields of `DecodeOptions` and `StreamOptions`."""
    decode = DecodeOptions(square(resolution), **{name: options.pop(name) for name in DECODE if name in options})
    return Stream(
        data, plan, StreamOptions(batch, decode, **options), start=start, ranks=RankInfo(rank, world), draw=draw
    )
