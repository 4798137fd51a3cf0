"""Curves of one or several runs as an image. The only door to matplotlib, which is an extra."""

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.errors import ConfigError, MachineError
from distgan.storage.atomic import replacing
from distgan.storage.home import user_path
from distgan.tools.report.curves import COLOURS, Panel, drawable, names, panels, thinned
from distgan.tools.report.history import History, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
DASHES = ("-", "--", ":", "-.")
COLUMNS, WIDTH, HEIGHT = 3, 4.6, 2.9  # of panels; of one, in inches


def plot(paths: Sequence[str], out: str = "", keys: Sequence[str] = ()) -> list[str]:
    """Draw the curves of runs into one image; returns lines for a person.

    Args:
        out: A .png or .svg; empty: plots/curves.png in the run's folder, or curves.png here where there are several.
        keys: Log keys to draw; none: those that tell how training goes.

    Raises:
        ConfigError: for what is no run, has no numbers yet, or lacks these keys.
        MachineError: without matplotlib, or where the image cannot be written.
    """
    runs = [read(path) for path in paths]
    target = user_path(out) if out else (runs[0].path / "plots" if len(runs) == 1 else Path()) / "curves.png"
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {target}: the name must end in {' or '.join(SUFFIXES)}")
    shown = panels(runs, keys)
    if not shown:
        raise ConfigError(f"{', '.join(paths)}: no metrics yet: the first line comes after a few steps")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MachineError(
            f"plot needs matplotlib ({error}): pip install 'distgan[plots]', or see `distgan report`, which does not"
        ) from None

    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    called = names(runs)
    for panel, ax in zip(shown, axes):
        _draw(ax, panel, runs, called)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    if len(runs) == 1:
        figure.suptitle(called[0], parse_math=False)  # a name may have dollar signs
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            figure.savefig(part, dpi=110, format=target.suffix[1:].lower())
    except OSError as error:
        raise MachineError(f"{target}: {error.strerror}; choose another place by --out") from None
    told = [f"warning: {problem}" for run in runs for problem in run.problems]
    told += [f"warning: {path} has no metrics yet" for path, run in zip(paths, runs) if not run.log_keys()]
    for key in keys:
        if lacking := [name for run, name in zip(runs, called) if not run.series(key).values]:
            told.append(f"warning: {key} is not in {', '.join(lacking)}")
    return [*told, f"{len(shown)} panel(s) of {len(runs)} run(s): {target}"]


def _draw(ax: "Axes", panel: Panel, runs: Sequence[History], called: Sequence[str]) -> None:
    """One run: a color for each key. Several: a color for each run, and dashes for each key."""
    several = len(runs) > 1
    for run, name, run_colour in zip(runs, called, cycle(COLOURS)):
        for key, dashes, key_colour in zip(panel.keys, cycle(DASHES), cycle(COLOURS)):
            curve = drawable(thinned(run.series(key)))
            if not curve.values or (panel.log and max(curve.values) <= 0):
                continue
            label = " ".join(([name] if several else []) + ([key] if len(panel.keys) > 1 else []))
            ax.plot(
                curve.kimg,
                curve.values,
                color=run_colour if several else key_colour,
                linestyle=dashes if several else "-",
                marker="o" if len(curve.values) < 30 else "",
                markersize=3,
                linewidth=1.3,
                label=f" {label}",  # matplotlib passes over labels that begin with an underscore
            )
    ax.set_title(panel.title, fontsize=10, loc="left", parse_math=False)
    ax.set_xlabel("kimg", fontsize=8)
    ax.set_ylabel(panel.unit, fontsize=8)
    ax.set_yscale("log" if panel.log and ax.lines else "linear")
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if several or len(panel.keys) > 1:
        for text in ax.legend(fontsize=7, frameon=False).get_texts():
            text.set_parse_math(False)
