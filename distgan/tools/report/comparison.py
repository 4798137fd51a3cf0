"""`distgan report A B ...`: several runs on one page: numbers, settings that differ, samples side by side, curves."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np

from distgan.metrics.names import better
from distgan.storage.formatting import short_number
from distgan.storage.printable import printable
from distgan.tools.report.chart import HEIGHT, WIDTH
from distgan.tools.report.curves import COLORS, panels
from distgan.tools.report.groups import Group, differing, group
from distgan.tools.report.history import History
from distgan.tools.report.plot import by_key
from distgan.tools.report.render import page_parts, render
from distgan.tools.report.samples import Figure, newest_figure

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # heading, head, rows


def comparison_page(runs: Sequence[History], title: str = "", more: Sequence[Table] = ()) -> str:
    """Return the page of several runs; those that differ in their seed alone are shown as one, with a band.

    Args:
        title: Its heading; empty: the runs' names.
        more: Tables that stand before all others.
    """
    groups = group(runs)
    names = [printable(one.name) for one in groups]
    metrics = _metrics(groups)
    samples = [figure for one, name in zip(groups, names) if (figure := _samples(one, name))]
    settings = [(key, *map(or_dash, values)) for key, values in differing(groups)]
    return render(
        "comparison.html",
        **page_parts(),
        name=title or ", ".join(names),
        problems=[problem for run in runs for problem in run.problems],
        tables=[
            *more,
            ("Runs", ("", "state", "seeds", "images", "minutes", *metrics), [_row(one, metrics) for one in groups]),
            ("Settings that differ", ("", *names), settings),
        ],
        samples=samples,
        has_bands=any(len(one.runs) > 1 for one in groups),
        legend=list(zip(names, cycle(COLORS))),
        curves=list(by_key(groups, panels(runs))),
        width=WIDTH,
        height=HEIGHT,
    )


def _samples(one: Group, name: str) -> Figure | None:
    """Return the newest grid of a group's first run, under the group's name."""
    figure = newest_figure(one.runs[0])
    return figure and replace(figure, title=name)


def _metrics(groups: Sequence[Group]) -> list[str]:
    """Return the metrics that have a best value, of any run."""
    keys = dict.fromkeys(key for one in groups for run in one.runs for key in run.log_keys())
    return [name for key in keys if key.startswith("Metrics/") and better(name := key.partition("/")[2])]


def _row(one: Group, metrics: Sequence[str]) -> list[str]:
    """Return a group's line: states, and the mean of its last numbers with the standard deviation over seeds."""
    states = dict.fromkeys(str(run.status.get("state") or "unknown") for run in one.runs)
    row = [printable(one.name), ", ".join(states), str(len(one.runs))]
    row.append(spread_text([run.last("Progress/images") for run in one.runs]))
    row.append(spread_text([hours and 60 * hours for hours in (run.last("Perf/total_hours") for run in one.runs)]))
    for name in metrics:
        values = [run.series(f"Metrics/{name}").values for run in one.runs]
        row.append(spread_text([series[-1] if series else None for series in values]))
    return row


def spread_text(values: Sequence[float | None]) -> str:
    """Return a mean and, of several, the standard deviation; of none, nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = short_number(float(np.mean(known)))
    return mean if len(known) < 2 or len(set(known)) == 1 else f"{mean} ± {short_number(float(np.std(known, ddof=1)))}"


def or_dash(value: object) -> str:
    """Return a setting as text; what is empty as a dash."""
    return str(value) if value not in ("", None, [], {}) else "-"
