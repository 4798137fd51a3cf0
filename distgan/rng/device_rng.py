"""Random numbers made on the device, as a function of each image's seed; the device's half of `host_rng`.

Every image of a batch carries one 64-bit seed, made on the host from (seed, position). What is drawn for it depends on
that seed and the purpose alone: not on ranks, on batches or on what was drawn before.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distgan.rng import host_rng

GOLDEN, FIRST, SECOND = (int(x) - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def bits(seeds: Tensor, purpose: str | Sequence[str], num: int) -> Tensor:
    """Return `num` random 64-bit integers for each seed: int64 [B] -> int64 [B, num]; SplitMix64, as in `host_rng`.

    Several purposes give the rows of each, one after the other, in as many calls as one purpose.
    """
    scaled = seeds * GOLDEN
    starts = [scaled + key for key in map(_key, [purpose] if isinstance(purpose, str) else purpose)]
    x = _mixed(torch.cat(starts)[:, None] if len(starts) > 1 else starts[0][:, None])
    return _mixed(x + torch.arange(num, device=seeds.device) * GOLDEN)


def uniform(seeds: Tensor, purpose: str | Sequence[str], num: int) -> Tensor:
    """`num` numbers in [0, 1) for each seed, on a grid of 2^-24; float32 [B, num]; purposes as for `bits`."""
    return _shifted(bits(seeds, purpose, num), 40).float() * 2**-24


def normal(seeds: Tensor, purpose: str | Sequence[str], num: int) -> Tensor:
    """`num` standard normal numbers for each seed; float32 [B, num]; purposes as for `bits`.

    Box-Muller on the halves of each integer.
    """
    words = bits(seeds, purpose, (num + 1) // 2)
    radius = torch.sqrt(-2 * torch.log((_shifted(words, 40).float() + 0.5) * 2**-24))
    angle = (_shifted(words, 16) & 0xFFFFFF).float() * (2 * math.pi * 2**-24)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2).flatten(1)[:, :num]


def _key(purpose: str) -> int:
    return int(host_rng.key(0, purpose).view("int64"))


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left; torch's own shift of a signed number keeps its sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
