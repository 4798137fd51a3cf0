"""Group runs that differ in their seed alone: a mean curve for them, and the band that they fill."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distgan.config.load import load
from distgan.config.records import flat, to_dict
from distgan.errors import ConfigError
from distgan.tools.report.history import History, Series

NO_RECIPE = ("run.", "wandb.", "train.seed")  # settings that make no other recipe


@dataclass(frozen=True)
class Group:
    """Runs of one recipe with different seeds, or a single run.

    Attributes:
        settings: Their settings by key, without those that make no other recipe; {} where they cannot be read.
    """

    name: str
    runs: list[History]
    settings: dict[str, object]

    def series(self, key: str) -> Series:
        """Return the mean over the runs, between the images that all of them reached."""
        return self._curves(key)[0]

    def band(self, key: str) -> tuple[Series, Series] | None:
        """Return the least and the greatest value over the runs; None where fewer than two have the key."""
        _, low, high = self._curves(key)
        return (low, high) if sum(bool(run.series(key).values) for run in self.runs) > 1 else None

    def _curves(self, key: str) -> tuple[Series, Series, Series]:
        found = [series for run in self.runs if (series := run.series(key)).values]
        if len(found) < 2:
            only = found[0] if found else Series()
            return only, only, only
        first, last = max(one.kimg[0] for one in found), min(one.kimg[-1] for one in found)
        at = [kimg for kimg in found[0].kimg if first <= kimg <= last]
        values = np.array([np.interp(at, one.kimg, one.values) for one in found])
        mean, low, high = values.mean(0), values.min(0), values.max(0)
        return Series(at, mean.tolist()), Series(at, low.tolist()), Series(at, high.tolist())


def group(runs: Sequence[History]) -> list[Group]:
    """Return the groups of runs, in the order of their first ones.

    Runs are of one group where all their settings but the seed are equal, and no two seeds are.
    """
    found: list[tuple[dict[str, object], list[History], set[object]]] = []
    for run in runs:
        settings, seed = _settings(run)
        for known, members, seeds in found:
            if settings and settings == known and seed not in seeds:
                members.append(run)
                seeds.add(seed)
                break
        else:
            found.append((settings, [run], {seed}))
    called = _names([members for _, members, _ in found])
    return [Group(name, members, settings) for name, (settings, members, _) in zip(called, found)]


def differing(groups: Sequence[Group]) -> list[tuple[str, list[object]]]:
    """Return the settings in which groups differ: the key, and each group's value."""
    keys = list(dict.fromkeys(key for one in groups for key in one.settings))
    rows = [(key, [one.settings.get(key) for one in groups]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _settings(run: History) -> tuple[dict[str, object], object]:
    """Return a run's settings without those that make no other recipe, and its seed; ({}, None) where unreadable."""
    file = run.path / "config.yaml"
    if not file.exists():
        return {}, None
    try:
        values = dict(flat(to_dict(load(str(file), is_saved=True))))
    except ConfigError:
        return {}, None
    return {key: value for key, value in values.items() if not key.startswith(NO_RECIPE)}, values["train.seed"]


def _names(members: Sequence[Sequence[History]]) -> list[str]:
    """Return what to call each group: a run's folder, of several runs the folder they are in; or paths, if alike."""
    short = [runs[0].name if len(runs) == 1 else runs[0].path.resolve().parent.name for runs in members]
    if len(set(short)) == len(short):
        return short
    return [str(runs[0].path) + (f" and {len(runs) - 1} more" if len(runs) > 1 else "") for runs in members]
