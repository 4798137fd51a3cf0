"""Write grids of generated images: a row for each class or condition, or a latent to a row and a value to a column."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from distgan.condition_spec import Conditions
from distgan.data import image_grid
from distgan.data.resize import fit
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec
from distgan.inference import sampling
from distgan.inference.request import Request
from distgan.inference.trained_generator import TrainedGenerator
from distgan.storage.atomic import replace_file

SUFFIX = ".png"


def require_grid(target: Path) -> None:
    """Refuse a grid's file of another suffix. Raises ConfigError."""
    if target.suffix.lower() != SUFFIX:
        raise ConfigError(f"--out {target}: a grid is a file that ends in {SUFFIX}")


def write_grid(G: TrainedGenerator, target: Path, request: Request) -> str:
    """Write a grid with a row for each class or condition that was named; returns a line that says where it is."""
    options, classes, given = request.options, request.classes, request.conditions
    groups = len(classes) if given is None else len(given)
    columns = options.columns or (-(-options.num // groups) if groups else math.ceil(math.sqrt(options.num)))
    rows = [i // columns for i in range(options.num)]
    labels: sampling.Labels = [classes[row % len(classes)] for row in rows] if classes else None
    if G.conditions is not None:
        values = G.conditions.chosen(given, range(rows[-1] + 1), options.seed)
        labels = G.conditions.conditions.encode(values)[rows]
        _write_legend(target, [f"row {i}: {G.conditions.conditions.text(row)}" for i, row in enumerate(values, 1)])
    parts = G.sampler(options.seed).display(range(options.num), labels, bands=bands_of(G))
    image_grid.save_png(target, image_grid.grid(_tiles(parts, request.image), columns))
    return f"{options.num} images: {target}"


def write_sweep(G: TrainedGenerator, target: Path, request: Request) -> str:
    """Write a grid where each row is a latent and each column a value of one condition; the others stay."""
    options = request.options
    if G.conditions is None:
        raise ConfigError(f"--sweep {options.sweep}: this generator has no conditions (data.condition)")
    known = G.conditions.conditions
    try:
        place, swept, names = G.conditions.sweep(options.sweep)
    except ValueError as error:
        raise ConfigError(f"--sweep: {error}") from None
    if options.columns not in (None, len(swept)):
        raise ConfigError(
            f"--columns {options.columns}: --sweep {options.sweep} has {len(swept)} of them: leave it out"
        )
    rows = max(1, options.num // len(swept))
    values = G.conditions.chosen(request.conditions, range(rows), options.seed)
    columns = []
    for value in swept:
        values[:, place] = value
        parts = G.sampler(options.seed).display(range(rows), known.encode(values), bands=bands_of(G))
        columns.append(_tiles(parts, request.image))
    image_grid.save_png(target, image_grid.grid([tile for row in zip(*columns) for tile in row], len(swept)))
    legend = [f"column {i}: {name}" for i, name in enumerate(names, 1)]
    texts = [", ".join(f"{name}={text}" for name, text in _texts(known, row, place)) for row in values]
    legend += [f"row {i}: latent {i - 1}{', ' * bool(text)}{text}" for i, text in enumerate(texts, 1)]
    _write_legend(target, legend)
    return f"{rows} x {len(swept)} images, {names[0]} to {names[-1]}: {target}"


def _tiles(parts: Iterator[torch.Tensor], image: ImageSpec) -> list[np.ndarray]:
    """Return what people see of images, at the size of `image`."""
    seen = ImageSpec(image.height, image.width)
    return [fit(tile, seen, crop="stretch") for part in parts for tile in part.permute(0, 2, 3, 1).cpu().numpy()]


def bands_of(G: TrainedGenerator) -> list[int]:
    """Return the channels to show that the run chose."""
    return G.origin["config"].get("eval", {}).get("bands", [])


def _texts(known: Conditions, row: np.ndarray, without: int) -> list[tuple[str, str]]:
    """Return names and values of the conditions, as text, but for the one at a place."""
    starts = np.cumsum([0, *(one.length for one in known.fields)]).tolist()
    parts = zip(known.fields, known.split(row), starts)
    return [(one.name, one.text(part)) for one, part, start in parts if start != without]


def _write_legend(target: Path, lines: Sequence[str]) -> None:
    """Write what a grid shows as a text next to it."""
    replace_file(target.with_suffix(".txt"), "\n".join(lines) + "\n")
