"""Lay out images as one grid, and write it as a PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from distgan.storage.atomic import replacing


def grid_shape(rows: int, columns: int, num_classes: int) -> tuple[int, int]:
    """Return rows and columns of a grid; 0 rows means one for each class, at most 16, or 8 without classes."""
    return rows or min(num_classes or 8, 16), columns


def grid_labels(rows: int, columns: int, classes: Sequence[int]) -> list[int] | None:
    """Return the labels of a grid: a class to a row, from the first again where there are more rows."""
    return [classes[row % len(classes)] for row in range(rows) for _ in range(columns)] if classes else None


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lay images row by row in one; uint8 [rows * H, columns * W, 3], missing ones white."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG, whole or not at all."""
    with replacing(path) as part:
        Image.fromarray(pixels).save(part, format="PNG", compress_level=1)
