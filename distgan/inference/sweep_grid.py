"""Grids of conditions: what `--condition` names, and a grid of a latent to a row and a value to a column."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distgan.condition_spec import Conditions
from distgan.data import image_grid
from distgan.data.resize import fit
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec
from distgan.inference.trained_generator import TrainedGenerator
from distgan.storage.atomic import replace_file


@dataclass(frozen=True)
class SweepOptions:
    """The options of a grid of values.

    Attributes:
        sweep: The condition and its values, "age=10:80:8".
        num: Number of images; whole rows of them are made, at least one.
        columns: Columns that were asked for, which must be as many as values.
    """

    sweep: str
    num: int
    columns: int | None
    seed: int


def parse_conditions(texts: Sequence[str], G: TrainedGenerator, sweep: str = "") -> np.ndarray | None:
    """Return the values [K, R] that `--condition` names; None without any. Raises ConfigError for others than G's.

    Args:
        sweep: What `--sweep` says; its condition need not be named.
    """
    if not texts:
        return None
    if G.conditions is None:
        takes = f"classes: --labels 0-{G.num_classes - 1}" if G.num_classes else "no conditions (data.condition)"
        raise ConfigError(f"--condition {texts[0]}: this generator takes {takes}")
    try:
        return G.conditions.named(texts, swept=sweep.partition("=")[0])
    except ValueError as error:
        raise ConfigError(f"--condition: {error}") from None


def write_sweep(
    G: TrainedGenerator, target: Path, given: np.ndarray | None, options: SweepOptions, shape: ImageSpec
) -> str:
    """Write a grid where each row is a latent and each column a value of one condition; the others stay."""
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
    values = G.conditions.chosen(given, range(rows), options.seed)
    columns = []
    for value in swept:
        values[:, place] = value
        parts = G.sampler(options.seed).display(range(rows), known.encode(values), bands=bands_of(G))
        columns.append(tiles_of(parts, shape))
    target.parent.mkdir(parents=True, exist_ok=True)
    image_grid.save_png(target, image_grid.grid([tile for row in zip(*columns) for tile in row], len(swept)))
    legend = [f"column {i}: {name}" for i, name in enumerate(names, 1)]
    texts = [", ".join(f"{name}={text}" for name, text in _texts(known, row, place)) for row in values]
    legend += [f"row {i}: latent {i - 1}{', ' * bool(text)}{text}" for i, text in enumerate(texts, 1)]
    write_legend(target, legend)
    return f"{rows} x {len(swept)} images, {names[0]} to {names[-1]}: {target}"


def tiles_of(parts: Iterator[torch.Tensor], shape: ImageSpec) -> list[np.ndarray]:
    """Return what people see of images, at the size of `shape`."""
    seen = ImageSpec(shape.height, shape.width)
    return [fit(tile, seen, crop="stretch") for part in parts for tile in part.permute(0, 2, 3, 1).cpu().numpy()]


def bands_of(G: TrainedGenerator) -> list[int]:
    """Return the channels to show that the run chose."""
    return G.origin["config"].get("eval", {}).get("bands", [])


def _texts(known: Conditions, row: np.ndarray, without: int) -> list[tuple[str, str]]:
    """Return names and values of the conditions, as text, but for the one at a place."""
    starts = np.cumsum([0, *(one.length for one in known.fields)]).tolist()
    parts = zip(known.fields, known.split(row), starts)
    return [(one.name, one.text(part)) for one, part, start in parts if start != without]


def write_legend(target: Path, lines: Sequence[str]) -> None:
    """Write what a grid shows as a text next to it."""
    replace_file(target.with_suffix(".txt"), "\n".join(lines) + "\n")
