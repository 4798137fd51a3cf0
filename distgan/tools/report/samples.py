"""Sample grids of a run, made small enough for a page."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from distgan.data.image_format import open_image
from distgan.errors import DataError
from distgan.storage import untrusted
from distgan.tools.report.history import History

T = TypeVar("T")
GRIDS = 36  # of each kind, spread evenly over the run
SIDE = 1280  # pixels of a grid's longer side at most
SMALL = 512  # a grid of fewer is shown with its pixels as squares
IMAGE_BYTES = 2**29  # of a file of samples
KINDS = {  # files of samples, in the order of the page
    "fakes": "Generated, by the average generator",
    "raw": "Generated, by the current generator",
    "reals": "Real images",
    "reals-augmented": "Real images, augmented as D sees them",
    "worst-reals": "The real images that D takes for the least real",
}
TRIPLES = "Degraded, restored by the average generator, and clean; held out of training"


@dataclass(frozen=True)
class Grid:
    """An image of samples: a data: address, when it was made, or "", and whether its pixels should be seen."""

    address: str
    kimg: str
    is_small: bool


@dataclass(frozen=True)
class Figure:
    """The grids of one kind, from the first to the last."""

    title: str
    grids: list[Grid]


def sample_figures(run: History, restored: bool) -> list[Figure]:
    """Return a figure for each kind of grid; files that cannot be read are added to the run's problems.

    Args:
        restored: Whether G restores images, so that grids of fakes show each next to what it was made of.
    """
    kinds = _files(run)
    titles = KINDS | ({"fakes": TRIPLES} if restored else {})
    figures = []
    for kind in [*(kind for kind in titles if kind in kinds), *(kind for kind in kinds if kind not in titles)]:
        grids = [_grid(run, file, kimg) for _, kimg, file in _evenly(kinds[kind], GRIDS)]
        figures.append(Figure(titles.get(kind, kind), [grid for grid in grids if grid]))
    return [figure for figure in figures if figure.grids]


def newest_figure(run: History) -> Figure | None:
    """Return the newest grid of generated images; None where there is none that can be read."""
    for _, kimg, file in _files(run).get("fakes", [])[:-3:-1]:  # a run that trains may replace the newest
        if grid := _grid(run, file, kimg):
            return Figure(KINDS["fakes"], [grid])
    return None


def _files(run: History) -> dict[str, list[tuple[float, str, Path]]]:
    """Return the files of samples by kind, in order: thousands of images, the same as text, and the file."""
    folder = run.path / "samples"
    if folder.is_symlink():
        run.problems.append(f"{folder}: a link, not a folder of the run: skipped")
        return {}
    files: dict[str, list[tuple[float, str, Path]]] = {}
    single: dict[str, list[tuple[float, str, Path]]] = {}
    for file in sorted(folder.glob("*.png")):
        if found := re.fullmatch(r"(\w+)-(\d+(?:\.\d+)?)", file.stem, re.ASCII):
            files.setdefault(found[1], []).append((float(found[2]), f"{float(found[2]):g}", file))
        elif not file.name.startswith("."):
            single[file.stem] = [(0.0, "", file)]
    return {kind: sorted(of_kind) for kind, of_kind in (dict(sorted(files.items())) | single).items()}


def _evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """Return at most so many of them, evenly, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _grid(run: History, file: Path, kimg: str) -> Grid | None:
    """Return a grid with its own bytes as the address; None where it is corrupt."""
    try:
        with open_image(untrusted.read(file, IMAGE_BYTES, follow_links=False)) as image:
            image.draft("RGB", (SIDE, SIDE))
            grid = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        run.problems.append(f"{file}: not readable as an image ({error}): skipped")
        return None
    except DataError as error:
        run.problems.append(f"{error}: skipped")
        return None
    grid.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    grid.save(out, "WEBP", quality=88, method=4)
    return Grid("data:image/webp;base64," + base64.b64encode(out.getvalue()).decode(), kimg, max(grid.size) < SMALL)
