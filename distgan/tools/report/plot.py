"""`distgan plot`: the curves of one or several runs side by side."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from distgan.errors import ConfigError, MachineError
from distgan.storage.atomic import replacing
from distgan.storage.home import user_path
from distgan.storage.printable import printable
from distgan.tools.report.chart import Chart, lay_out
from distgan.tools.report.curves import COLORS, Panel, panels, thinned
from distgan.tools.report.groups import Group, group
from distgan.tools.report.history import History, read
from distgan.tools.report.sheet import arrange, write

SUFFIXES = (".png", ".svg")
MAX_PANELS = 300


def plot(paths: Sequence[str], out: str = "", keys: Sequence[str] = ()) -> list[str]:
    """Draw the curves of runs into one file; returns readable lines.

    Runs that differ in their seed alone become one curve, their mean, with a band from the least to the greatest value.

    Args:
        out: A .png or .svg; empty: plots/curves.png in the run's folder, or curves.png here where there are several.
        keys: Log keys to draw; none: those of the report.

    Raises:
        ConfigError: for what is no run, has no numbers yet, or lacks these keys.
        MachineError: where the file cannot be written.
    """
    runs = [read(path) for path in paths]
    target = user_path(out) if out else (runs[0].path / "plots" if len(runs) == 1 else Path()) / "curves.png"
    kind = target.suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"--out {target}: the name must end in {' or '.join(SUFFIXES)}")
    shown = panels(runs, keys)
    if not shown:
        raise ConfigError(f"{', '.join(paths)}: no metrics yet: the first line comes after a few steps")
    groups = group(runs)
    called = [printable(one.name) for one in groups]
    charts = list(_by_panel(runs[0], shown) if len(runs) == 1 else by_key(groups, shown))
    if len(charts) > MAX_PANELS:
        raise ConfigError(f"{len(charts):,} panels, and one file shows {MAX_PANELS} at most: choose some by --keys")
    if len(runs) == 1:
        sheet = arrange(called[0], (), charts)
    else:
        sheet = arrange("", list(zip(called, cycle(COLORS))), charts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            write(sheet, part, kind)
    except OSError as error:
        raise MachineError(f"{target}: {error.strerror}; choose another place by --out") from None
    lines = [f"warning: {problem}" for run in runs for problem in run.problems]
    lines += [f"warning: {path} has no metrics yet" for path, run in zip(paths, runs) if not run.log_keys()]
    for key in keys:
        if lacking := [name for name, one in zip(called, groups) if not one.series(key).values]:
            lines.append(f"warning: {key} is not in {', '.join(lacking)}")
    return [*lines, f"{len(sheet.charts)} panel(s) of {len(runs)} run(s): {target}"]


def _by_panel(run: History, shown: Sequence[Panel]) -> Iterator[tuple[str, Chart]]:
    """Yield the title and the chart of each panel of a run, with a color for each key."""
    for panel in shown:
        yield _title(panel, panel.title), lay_out([(key, thinned(run.series(key))) for key in panel.keys], panel.log)


def by_key(groups: Sequence[Group], shown: Sequence[Panel]) -> Iterator[tuple[str, Chart]]:
    """Yield a title and a chart of all groups of runs for each key, with a color for each group."""
    for panel in shown:
        for key in panel.keys:
            curves = [(printable(one.name), thinned(one.series(key))) for one in groups]
            bands = [one.band(key) for one in groups]
            thin = [None if band is None else (thinned(band[0]), thinned(band[1])) for band in bands]
            yield _title(panel, key), lay_out(curves, panel.log, thin)


def _title(panel: Panel, name: str) -> str:
    return printable(f"{name}, {panel.unit}" if panel.unit else name)
