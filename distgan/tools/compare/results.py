"""Read what the trainings of a comparison gave, and lay it out as a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distgan.errors import DataError
from distgan.metrics.names import better
from distgan.storage.formatting import short_number
from distgan.storage.untrusted import read_json
from distgan.tools.compare.plan import Training
from distgan.tools.compare.statistics import Difference, Spread, paired_difference, spread
from distgan.tools.report.comparison import spread_text
from distgan.tools.report.history import History

MINUTES, SPEED = TIMES = "minutes", "images/s"


@dataclass
class Result:
    """What one training gave.

    Attributes:
        state: "finished", or why there are no values.
        values: By name: those of the evaluation, and the time.
    """

    training: Training
    state: str
    values: dict[str, float] = field(default_factory=dict)


def values_of(report: dict, run: History) -> dict[str, float]:
    """Return the finite values of an evaluation's report, the minutes of the training, and its speed."""
    found = {name: float(value["mean"]) for name, value in report["values"].items() if value["mean"] is not None}
    hours, images = run.last("Perf/total_hours"), run.last("Progress/images")
    if hours and images:
        found |= {MINUTES: 60 * hours, SPEED: images / (3600 * hours)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def read_report(file: Path) -> dict | None:
    """Return the report of an evaluation; None where there is none that can be read."""
    try:
        report = read_json(file)
    except (FileNotFoundError, DataError):
        return None
    return report if isinstance(report, dict) and isinstance(report.get("values"), dict) else None


def summary(results: Sequence[Result]) -> dict:
    """Return all numbers of a comparison as JSON values."""
    recipes = _recipes(results)
    first = recipes[0]
    return {
        "recipes": {
            name: {
                "config": _of(results, name)[0].training.config_path,
                "settings": list(_of(results, name)[0].training.overrides),
                "seeds": {str(one.training.seed): {"state": one.state, **one.values} for one in _of(results, name)},
                "values": {value: vars(found) for value in names(results) if (found := _spread(results, name, value))},
            }
            for name in recipes
        },
        "differences": {
            f"{name} - {first}": {
                value: vars(pair) for value in names(results) if (pair := _difference(results, first, name, value))
            }
            for name in recipes[1:]
        },
    }


def names(results: Sequence[Result]) -> list[str]:
    """Return the names of all values, those of evaluations first."""
    found = dict.fromkeys(name for one in results for name in one.values)
    return [*(name for name in found if name not in TIMES), *(name for name in TIMES if name in found)]


def rows(results: Sequence[Result]) -> list[list[str]]:
    """Return a table with its head: a line for each value, the recipes' means, and differences from the first one."""
    recipes = _recipes(results)
    first, *others = recipes
    table = [["", *recipes, *(f"{name} - {first}" for name in others)]]
    for value in names(results):
        if value in TIMES or better(value):
            means = [spread_text([*_by_seed(results, name, value).values()]) for name in recipes]
            differences = [_difference_text(_difference(results, first, name, value), value) for name in others]
            table.append([value, *means, *differences])
    return [*table, ["seeds", *(_seeds_text(_of(results, name)) for name in recipes), *("" for _ in others)]]


def _recipes(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(one.training.recipe for one in results))


def _of(results: Sequence[Result], recipe: str) -> list[Result]:
    return [one for one in results if one.training.recipe == recipe]


def _by_seed(results: Sequence[Result], recipe: str, value: str) -> dict[int, float]:
    return {one.training.seed: one.values[value] for one in _of(results, recipe) if value in one.values}


def _spread(results: Sequence[Result], recipe: str, value: str) -> Spread | None:
    return spread([*_by_seed(results, recipe, value).values()])


def _difference(results: Sequence[Result], first: str, second: str, value: str) -> Difference | None:
    return paired_difference(_by_seed(results, first, value), _by_seed(results, second, value))


def _seeds_text(own: Sequence[Result]) -> str:
    """Return the number of seeds with values, and why others have none."""
    num, without = sum(bool(one.values) for one in own), dict.fromkeys(one.state for one in own if not one.values)
    return f"{num} of {len(own)} ({', '.join(without)})" if without else str(num)


def _difference_text(found: Difference | None, value: str) -> str:
    """Return a difference, its interval, and whether that says that the second recipe is better or worse."""
    if found is None:
        return ""
    mean = f"{'+' if found.mean > 0 else ''}{short_number(found.mean)}"
    if found.interval is None:
        return mean
    low, high = found.interval
    best = None if value in TIMES else better(value)
    verdict = ""
    if best is not None and low * high > 0:
        verdict = " better" if (high < 0) == (best is min) else " worse"
    return f"{mean} [{short_number(low)}, {short_number(high)}]{verdict}"
