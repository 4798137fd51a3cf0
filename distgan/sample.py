"""Seeds -> images: the generator's pictures, each a function of (seed, number) alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distgan import keyed

CHUNK = 64  # images of one forward; always whole, so that a picture does not depend on how many are asked for


@torch.no_grad()
def generate(
    G: nn.Module, z_dim: int, seed: int, numbers: Sequence[int], labels: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Pictures of the given numbers; uint8 [H, W, 3] each.

    The generator is switched to evaluation for it. Picture i is that of latent i of `seed`; the forward passes are
    always of CHUNK latents, the last one filled up.
    """
    device = next(G.parameters()).device
    was_training = G.training
    G.eval()
    try:
        for start in range(0, len(numbers), CHUNK):
            part = np.asarray(numbers[start : start + CHUNK], np.int64)
            padded = np.resize(part, CHUNK)
            z = torch.from_numpy(keyed.normal(keyed.key(seed, "sample"), padded, z_dim)).to(device)
            classes = None
            if labels is not None:
                classes = torch.as_tensor(np.resize(labels[start : start + CHUNK], CHUNK), device=device)
            yield from to_uint8(G(z, classes))[: len(part)]
    finally:
        G.train(was_training)


def grid_shape(rows: int, columns: int, num_classes: int) -> tuple[int, int]:
    """Rows and columns of a grid; 0 rows means one for each class, at most 16, or 8 without classes."""
    return rows or min(num_classes or 8, 16), columns


def grid_labels(rows: int, columns: int, num_classes: int) -> list[int] | None:
    """Labels of a grid: one class to a row, from the first again where there are more rows."""
    return [row % num_classes for row in range(rows) for _ in range(columns)] if num_classes else None


def to_uint8(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in -1..1 -> uint8 [B, H, W, 3], rounded to the nearest level."""
    scaled = (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures row by row in one; uint8 [rows * H, columns * W, 3], missing ones white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height, left : left + width] = picture
    return canvas


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write whole or not at all."""
    part = path.with_name(f".{path.name}")
    Image.fromarray(pixels).save(part, format="PNG", compress_level=1)
    part.replace(path)
