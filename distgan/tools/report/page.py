"""`distgan report RUN`: a run as one HTML file that opens from disk.

Nothing in it comes from elsewhere, and whatever the run's files hold is shown as text: `render` escapes it, and the
page's own policy forbids scripts and styles other than page.js and page.css.
"""

import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from distgan.config.load import load
from distgan.config.model_schema import FAMILIES
from distgan.config.records import changes
from distgan.config.schema import Config, Model, restores
from distgan.data import dataset_card
from distgan.errors import ConfigError, DataError, MachineError
from distgan.metrics.names import better
from distgan.storage import formatting, untrusted
from distgan.storage.atomic import replacing
from distgan.storage.formatting import short_number
from distgan.storage.home import user_path
from distgan.storage.urls import public
from distgan.tools.report.chart import HEIGHT, WIDTH, lay_out
from distgan.tools.report.comparison import comparison_page, or_dash
from distgan.tools.report.curves import panels, thinned
from distgan.tools.report.history import History, kimg, read, read_mapping
from distgan.tools.report.render import page_parts, render
from distgan.tools.report.samples import sample_figures

CONFIG_BYTES = 2**20
LOG_BYTES = 12_000  # of the end of log.txt
NOT_HELD = (
    "No process of this machine holds the run folder: the run is on another machine, or was killed. "
    "The same command resumes from its last checkpoint."
)


def report(paths: Sequence[str], out: str = "") -> list[str]:
    """Write the report of a run, or of several on one page; returns readable lines.

    Args:
        out: An .html file; empty: report.html in the run's folder, or here where there are several.

    Raises:
        ConfigError: for what is not a run folder.
        MachineError: where the file cannot be written.
    """
    runs = [read(path) for path in paths]
    target = user_path(out) if out else (runs[0].path if len(runs) == 1 else Path()) / "report.html"
    text = page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    size = write_page(text, target)
    return [*(f"warning: {problem}" for run in runs for problem in run.problems), f"{target}, {size}"]


def write_page(text: str, target: Path) -> str:
    """Write a page completely or not at all; returns its size, readable. Raises ConfigError and MachineError."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target}: the name must end in .html")
    data = text.encode("utf-8", "replace")  # names of files may hold what is no text
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            part.write_bytes(data)
    except OSError as error:
        raise MachineError(f"{target}: {error.strerror}; choose another place by --out") from None
    return formatting.size(len(data))


def page(run: History) -> str:
    """Return the whole document; what could not be read is added to the run's problems, which it shows."""
    settings = _settings(run)
    state, reason = _state(run)
    starts, versions = _environment(run)
    return render(
        "page.html",
        **page_parts(),
        name=run.name,
        state=state,
        reason=reason,
        when=run.status.get("time", ""),
        tiles=_tiles(run),
        samples=sample_figures(run, settings is not None and restores(settings)),
        metrics=_metrics(run),
        curves=[
            (panel, lay_out([(key, thinned(run.series(key))) for key in panel.keys], panel.log))
            for panel in panels([run])
        ],
        width=WIDTH,
        height=HEIGHT,
        data=[*_data(settings), *_origin(run)],
        changed=_changed(settings),
        config_text=_config_text(run),
        starts=starts,
        versions=versions,
        log=_log(run),
        problems=run.problems,
    )


# Numbers.


def _state(run: History) -> tuple[str, str]:
    """Return how the run is, and where that is bad, why."""
    state = str(run.status.get("state") or "unknown")
    if state == "running" and not run.is_held():
        return "running?", NOT_HELD
    return state, str(run.status.get("reason") or "") if state == "failed" else ""


def _tiles(run: History) -> list[tuple[str, str]]:
    """Return the few numbers at the top of the page."""
    found: list[tuple[str, str]] = []
    images, total = run.last("Progress/images"), run.status.get("total_images")
    if images is not None:
        of = f", of {short_number(total)}" if isinstance(total, int) else ""
        found.append((f"images{of}", short_number(images)))
    if (hours := run.last("Perf/total_hours")) is not None:
        found.append(("training time", f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"))
    if speeds := run.series("Perf/img_per_sec").values:  # the middle one: some lines hold an evaluation's time
        found.append(("images/s, median", short_number(statistics.median(speeds))))
    if "world" in run.status:
        found.append(("ranks", str(run.status["world"])))
    for key in (key for key in run.log_keys() if key.startswith("Metrics/")):
        name, values = key.partition("/")[2], run.series(key).values
        if best := better(name, _directions(run)):
            found.append((f"best {name}", short_number(best(values))))
    return found[:8]


def _metrics(run: History) -> dict[str, list] | None:
    """Return the table of evaluations: names of metrics, and rows of (kimg, [(value, whether it is the best)])."""
    rows = [row for row in run.evals if any(key.startswith("Metrics/") for key in row)]
    keys = [key for key in run.log_keys() if key.startswith("Metrics/") and any(key in row for row in rows)]
    if not keys:
        return None
    names = [key.partition("/")[2] for key in keys]
    best = {
        key: choose(run.series(key).values)
        for key, name in zip(keys, names)
        if (choose := better(name, _directions(run)))
    }

    def cell(key: str, value: object) -> tuple[str, bool]:
        text = short_number(value) if isinstance(value, (int, float)) else "" if value is None else str(value)
        return text, key in best and value == best[key]

    return {"names": names, "rows": [(f"{kimg(row):g}", [cell(key, row.get(key)) for key in keys]) for row in rows]}


# What the run was.


def _settings(run: History) -> Config | None:
    file = run.path / "config.yaml"
    if not file.exists():
        return None
    try:
        return load(str(file), is_saved=True)
    except ConfigError as error:
        run.problems.append(f"{file}: not understood by this version, so shown as text only: {error}")
        return None


def _changed(settings: Config | None) -> list[tuple[str, str, str]]:
    """Return settings that are not the default of their family: key, value, default."""
    if settings is None:
        return []
    family = settings.model.family
    G, D = (asdict(schema()) for schema in FAMILIES[family]) if family in FAMILIES else ({}, {})
    free, others = changes(Config(model=Model(family=family, G=G, D=D)), settings)
    return [(name, or_dash(new), or_dash(old)) for name, (old, new) in sorted({**others, **free}.items())]


def _config_text(run: History) -> str:
    try:
        return untrusted.read(run.path / "config.yaml", CONFIG_BYTES, follow_links=False).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except DataError as error:
        run.problems.append(f"{error}: skipped")
        return ""


def _data(settings: Config | None) -> list[tuple[str, str]]:
    """Return the card of the data set, if it is still where the run read it."""
    if settings is None or not settings.data.shards:
        return []
    shards = [public(url) for url in settings.data.shards]
    named = ", ".join(shards[:5]) + (f" and {len(shards) - 5} more" if len(shards) > 5 else "")
    return [("shards", named), *dataset_card.facts(dataset_card.read(settings.data.shards[0]))]


def _origin(run: History) -> list[tuple[str, str]]:
    """Return what weights the run started from, and the plugins that it was trained with; nothing without them."""
    found = read_mapping(run.path / "init.json", run.problems)
    rows = [(f"weights {name}", str(found[name])) for name in ("from", "sha256") if name in found]
    plugins = read_mapping(run.path / "plugins" / "plugins.json", run.problems).get("plugins")
    for name, about in plugins.items() if isinstance(plugins, dict) else ():
        adds = about.get("adds") if isinstance(about, dict) else None
        parts = f": {', '.join(map(str, adds))}" if isinstance(adds, list) else ""
        rows.append(("plugin", f"{name}{parts}; sha256 {about.get('sha256') if isinstance(about, dict) else '?'}"))
    return rows


def _directions(run: History) -> dict[str, str]:
    """Return in which direction the values of a run's plugins are better, as it noted it."""
    found = read_mapping(run.path / "plugins" / "plugins.json", []).get("directions")
    return {name: str(word) for name, word in found.items()} if isinstance(found, dict) else {}


def _environment(run: History) -> tuple[list[tuple[str, ...]], list[tuple[str, str]]]:
    """Return when, where and how the run was started, and versions at the last start."""
    found = read_mapping(run.path / "environment.json", run.problems).get("starts")
    starts = [start for start in found if isinstance(start, dict)] if isinstance(found, list) else []
    if not starts:
        return [], []
    last = starts[-1]
    versions = [(name, str(last[name])) for name in ("python", "git") if last.get(name)]
    for name in ("packages", "variables"):
        known = last.get(name)
        versions += [(str(k), str(v)) for k, v in known.items() if v] if isinstance(known, dict) else []
    return [tuple(str(start.get(name, "")) for name in ("time", "host", "command")) for start in starts], versions


def _log(run: History) -> str:
    """Return the end of log.txt."""
    try:
        with untrusted.open_regular(run.path / "log.txt", follow_links=False) as file:
            length = file.seek(0, io.SEEK_END)
            file.seek(max(0, length - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    except DataError as error:
        run.problems.append(f"{error}: skipped")
        return ""
    return text.partition("\n")[2] if length > LOG_BYTES else text
