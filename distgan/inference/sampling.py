"""Seeds -> images: the generator's images, each a function of (seed, number) alone."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from distgan.data.image_grid import to_uint8
from distgan.models.networks import run_generator
from distgan.rng import host_rng

CHUNK = 64  # images of one forward; always whole, so that an image does not depend on which others are asked for


Given = Callable[[list[int]], np.ndarray]  # numbers -> degraded images, uint8 [n, R, R, 3]


def chunk_of(resolution: int) -> int:
    """Images of one forward at this resolution: CHUNK, fewer above 256 pixels, where that many take much memory."""
    return max(1, min(CHUNK, CHUNK * 256**2 // resolution**2))


def latents(seed: int, numbers: Sequence[int] | np.ndarray, z_dim: int) -> Tensor:
    """Latent i of `seed`, which is all that image i is made of but for its label; float32 [len(numbers), z_dim]."""
    return torch.from_numpy(host_rng.normal(host_rng.key(seed, "sample"), np.asarray(numbers, np.int64), z_dim))


def generate(
    G: nn.Module,
    z_dim: int,
    seed: int,
    numbers: Sequence[int],
    labels: Sequence[int] | None = None,
    chunk: int = CHUNK,
    given: Given | None = None,
) -> Iterator[np.ndarray]:
    """Images of the given numbers; uint8 [H, W, 3] each. Arguments as for `images`."""
    for part in images(G, z_dim, seed, numbers, labels, chunk, given):
        yield from to_uint8(part)


@torch.no_grad()
def images(
    G: nn.Module,
    z_dim: int,
    seed: int,
    numbers: Sequence[int],
    labels: Sequence[int] | None = None,
    chunk: int = CHUNK,
    given: Given | None = None,
) -> Iterator[Tensor]:
    """Images of the given numbers, in runs of at most `chunk`; [B, C, H, W] in -1..1.

    The generator is switched to evaluation for it. Image i is that of latent i of `seed`, in row i % chunk of a forward
    of the chunk's latents: its bits depend on `seed`, i, its label and `chunk`, and on nothing else that is asked for.

    Args:
        given: What a generator that restores is to restore.
    """
    device = next(G.parameters()).device
    was_training = G.training
    wanted = np.asarray(numbers, np.int64)
    chosen = None if labels is None else np.asarray(labels, np.int64)
    cuts = np.flatnonzero((np.diff(wanted // chunk) != 0) | (np.diff(wanted) <= 0)) + 1
    G.eval()
    try:
        for part in np.split(np.arange(len(wanted)), cuts) if len(wanted) else ():
            first = wanted[part[0]] // chunk * chunk
            rows, classes = wanted[part] - first, None
            if chosen is not None:
                filled = np.full(chunk, chosen[part[0]])  # of the rows that are not asked for, whichever
                filled[rows] = chosen[part]
                classes = torch.from_numpy(filled).to(device)
            z = latents(seed, np.arange(first, first + chunk), z_dim).to(device)
            pictures = None
            if given is not None:
                found = torch.from_numpy(given(wanted[part].tolist())).to(device).permute(0, 3, 1, 2) / 127.5 - 1
                pictures = found[:1].repeat(chunk, 1, 1, 1)
                pictures[torch.from_numpy(rows).to(device)] = found
            yield run_generator(G, z, pictures, classes)[torch.from_numpy(rows).to(device)]
    finally:
        G.train(was_training)
