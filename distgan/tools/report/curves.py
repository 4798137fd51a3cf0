"""Choose the curves of a run that are shown, those on one pair of axes, and the number of points."""

from collections.abc import Sequence
from dataclasses import dataclass

from distgan.config.renamed import RENAMED_LOG_KEYS
from distgan.errors import ConfigError
from distgan.metrics.names import better
from distgan.tools.report.history import History, Series

COLORS = ("#2f6fde", "#d9622b", "#2a9d6a", "#b8478f", "#8a6d3b", "#5b5fc7", "#c03a3a", "#3d8ea5")
HUGE = 1e300  # so that differences of numbers stay finite
POINTS = 800  # of a curve, which is more than an image's pixels can show


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes; `log`: on a logarithmic scale; `optional`: keys that are left out where all zero."""

    title: str
    keys: tuple[str, ...]
    unit: str = ""
    log: bool = False
    optional: tuple[str, ...] = ()


PANELS = (
    Panel("Losses", ("Loss/D", "Loss/G")),
    Panel("Penalties", (), optional=("Loss/r1", "Loss/r2", "Loss/gp", "Loss/fm", "Loss/path")),
    Panel("Logits", ("Logits/real_mean", "Logits/fake_mean")),
    Panel("Logits: real minus fake", ("Logits/real_minus_fake",)),
    Panel("D's verdicts", ("Logits/D_accuracy", "Logits/sign_real", "Logits/sign_fake")),
    Panel("Diversity of fakes over reals", ("Diversity/fake_over_real",)),
    Panel("Gradient norms", ("Optim/grad_norm_D", "Optim/grad_norm_G"), log=True),
    Panel("Learning rates", ("Optim/lr_D", "Optim/lr_G")),
    Panel("Probability of augmentation", ("Augment/p",)),
    Panel("Balance", ("Balance/level", "Balance/d_steps")),
    Panel("Steps not taken", (), optional=("Optim/skipped_steps", "Optim/rollbacks")),
    Panel("Speed", ("Perf/img_per_sec",), "images/s"),
    Panel("Time lost to waiting", ("Perf/data_wait_pct", "Perf/rank_skew_pct"), "%"),
    Panel("Memory, peak", ("Resources/gpu_mem_peak_gb", "Resources/cpu_mem_gb"), "GB"),
)


def panels(runs: Sequence[History], keys: Sequence[str] = ()) -> list[Panel]:
    """Return what there is to show of these runs: metrics first, then training. With `keys`, a panel for each of them.

    Raises ConfigError for a key that no run has, naming those that there are.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.log_keys()))
    if unknown := [key for key in keys if key not in known]:
        if (new := RENAMED_LOG_KEYS.get(unknown[0])) in known:
            raise ConfigError(f"{unknown[0]} is now {new}")
        there = ", ".join(key for key in known if not key.startswith("Progress/"))
        raise ConfigError(f"no run has {', '.join(unknown)}; there are {there or 'no numbers yet'}")
    if keys:
        return [Panel(key, (key,)) for key in keys]
    metrics = [key for key in known if key.startswith("Metrics/") and better(key.partition("/")[2])]
    found = [Panel(key.partition("/")[2], (key,)) for key in metrics]
    for panel in PANELS:
        shown = [key for key in (*panel.keys, *panel.optional) if key in known]
        zero = {key for key in shown if key in panel.optional and not any(any(r.series(key).values) for r in runs)}
        if kept := tuple(key for key in shown if key not in zero):
            found.append(Panel(panel.title, kept, panel.unit, panel.log))
    return found


def thinned(series: Series, points: int = POINTS) -> Series:
    """Return at most `points` points of a series that draw the same curve: the extremes of each stretch."""
    num = len(series.values)
    if num <= points:
        return series
    kept = {0, num - 1}
    stretches = max(1, points // 2 - 1)
    for i in range(stretches):
        stretch = range(i * num // stretches, (i + 1) * num // stretches)
        kept |= {min(stretch, key=series.values.__getitem__), max(stretch, key=series.values.__getitem__)}
    order = sorted(kept)
    return Series([series.kimg[i] for i in order], [series.values[i] for i in order])


def drawable(curve: Series, above: float = -HUGE) -> Series:
    """Return the points between `above` and HUGE."""
    kept = [(at, value) for at, value in zip(curve.kimg, curve.values) if above < value < HUGE]
    return Series([at for at, _ in kept], [value for _, value in kept])
