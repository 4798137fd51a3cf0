"""A run as one HTML file that opens from disk: samples over time, curves, metrics, data, settings, environment.

Nothing in it comes from elsewhere, and whatever the run's files hold is shown as text: all of it passes through
`markup.tag`, and the page's own policy forbids scripts and styles other than page.js and page.css.
"""

import base64
import hashlib
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from distgan.config.load import load
from distgan.config.model_schema import FAMILIES
from distgan.config.schema import Config, Model, changes, restores
from distgan.data import dataset_card
from distgan.data.image_format import open_image
from distgan.errors import ConfigError, DataError, MachineError
from distgan.metrics.names import better
from distgan.storage import untrusted
from distgan.storage.atomic import replacing
from distgan.storage.home import user_path
from distgan.storage.urls import public
from distgan.tools.report.curves import Panel, panels, thinned
from distgan.tools.report.history import History, kimg, read, read_mapping
from distgan.tools.report.markup import Markup, join, tag
from distgan.tools.report.svg import chart, legend, number

GRIDS = 36  # of each kind, spread evenly over the run
SIDE = 1280  # pixels of a grid's longer side at most
SMALL = 512  # a grid of fewer is shown with its pixels as squares
PICTURE_BYTES = 2**29  # of a file of samples
CONFIG_BYTES = 2**20
LOG_BYTES = 12_000  # of the end of log.txt
KINDS = {  # files of samples, in the order of the page
    "fakes": "Generated, by the average generator",
    "raw": "Generated, by the current generator",
    "reals": "Real images",
    "reals-augmented": "Real images, augmented as D sees them",
    "worst-reals": "The real images that D takes for the least real",
}
TRIPLES = "Degraded, restored by the average generator, and clean; held out of training"


def report(path: str, out: str = "") -> list[str]:
    """Write the report of a run; returns lines for a person.

    Args:
        out: An .html file; empty: report.html in the run's folder.

    Raises:
        ConfigError: for what is not a run folder.
        MachineError: where the file cannot be written.
    """
    run = read(path)
    target = user_path(out) if out else run.path / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target}: the name must end in .html")
    data = page(run).encode("utf-8", "replace")  # names of files may hold what is no text
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            part.write_bytes(data)
    except OSError as error:
        raise MachineError(f"{target}: {error.strerror}; choose another place by --out") from None
    return [*(f"warning: {problem}" for problem in run.problems), f"{target}, {len(data) / 1e6:.1f} MB"]


def page(run: History) -> str:
    """The whole document; what could not be read is added to the run's problems."""
    settings = _settings(run)
    sections = [
        _section("Samples", _samples(run, settings)),
        _section("Metrics", _metrics(run)),
        _section("Curves", _curves(run)),
        _section("Data", _data(run, settings)),
        _section("Settings", _config(run, settings)),
        _section("Environment", _environment(run)),
        _section("Log", _log(run)),
    ]
    notes = [tag("p", problem, class_="problem") for problem in run.problems]
    # The page's own two files; nothing of the run is in them.
    style, script = (Markup(Path(__file__).with_name(f"page.{kind}").read_text()) for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{run.name} - distgan"),
        tag("style", style),
    )
    body = tag("body", tag("main", _header(run), *notes, *sections), tag("script", script))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


UNHELD = (
    "No process of this machine holds the run folder: the run is on another machine, or was killed. "
    "The same command resumes from its last checkpoint."
)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _section(title: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title), content) if content else Markup()


def _header(run: History) -> Markup:
    state = str(run.status.get("state") or "unknown")
    facts: list[tuple[str, str]] = []
    images, total = run.last("Progress/images"), run.status.get("total_images")
    if images is not None:
        of = f", of {number(total)}" if isinstance(total, int) else ""
        facts.append((f"images{of}", number(images)))
    if (hours := run.last("Perf/total_hours")) is not None:
        facts.append(("training time", f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"))
    if speeds := run.series("Perf/img_per_sec").values:  # the middle one: some lines hold an evaluation's time
        facts.append(("images/s, median", number(statistics.median(speeds))))
    facts += [("ranks", str(run.status["world"]))] if "world" in run.status else []
    for key in (key for key in run.log_keys() if key.startswith("Metrics/")):
        name, values = key.partition("/")[2], run.series(key).values
        if best := better(name):
            facts.append((f"best {name}", number(best(values))))
    tiles = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts[:8]]
    reason = str(run.status.get("reason") or "") if state == "failed" else ""
    if state == "running" and not run.is_held():
        state, reason = "running?", UNHELD
    when = f"{run.status['time']}" if "time" in run.status else ""
    return tag(
        "header",
        tag("p", "distgan run", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", tag("span", state, class_="state", data_state=state), " ", when, class_="when"),
        tag("p", reason, class_="problem") if reason else Markup(),
        tag("dl", *tiles, class_="tiles") if tiles else Markup(),
    )


# Samples.


def _samples(run: History, settings: Config | None) -> Markup:
    """A figure for each kind of grid, with a slider over the thousands of images it was made at."""
    series: dict[str, list[tuple[float, Path]]] = {}
    single: list[tuple[str, Path]] = []
    folder = run.path / "samples"
    if folder.is_symlink():
        run.problems.append(f"{folder}: a link, not a folder of the run: skipped")
    for file in sorted(folder.glob("*.png")) if not folder.is_symlink() else ():
        if found := re.fullmatch(r"(\w+)-(\d+(?:\.\d+)?)", file.stem, re.ASCII):
            series.setdefault(found[1], []).append((float(found[2]), file))
        elif not file.name.startswith("."):
            single.append((file.stem, file))
    titles = KINDS | ({"fakes": TRIPLES} if settings is not None and restores(settings) else {})
    shown: dict[str, Markup] = {}
    for kind in sorted(series):
        grids = _spread(sorted(series[kind]), GRIDS)
        pictures = [(at, picture) for at, file in grids if (picture := _picture(run, file))]
        shown[kind] = _figure(titles.get(kind, kind), pictures)
    for kind, file in single:
        picture = _picture(run, file)
        shown[kind] = _figure(titles.get(kind, kind), [(None, picture)] if picture else [])
    order = [*(kind for kind in titles if kind in shown), *(kind for kind in shown if kind not in titles)]
    figures = [shown[kind] for kind in order]
    return tag("div", *figures, class_="figures") if any(figures) else Markup()


def _spread(items: list, most: int) -> list:
    """At most so many of them, evenly, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _picture(run: History, file: Path) -> tuple[str, bool] | None:
    """A grid as the address of its own bytes, and whether its pixels should be seen; None where it is corrupt."""
    try:
        with open_image(untrusted.read(file, PICTURE_BYTES, follow_links=False)) as image:
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
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode(), max(grid.size) < SMALL


def _figure(title: str, pictures: Sequence[tuple[float | None, tuple[str, bool]]]) -> Markup:
    if not pictures:
        return Markup()
    last = len(pictures) - 1
    shown = [
        tag(
            "img",
            src=address,
            alt=title if at is None else f"{title}, at {at:g} kimg",
            class_="pixels" if small else None,
            data_kimg=None if at is None else f"{at:g}",
            hidden=i < last,
        )
        for i, (at, (address, small)) in enumerate(pictures)
    ]
    caption = [tag("span", title)]
    if pictures[-1][0] is not None:
        caption.append(tag("output", f"{pictures[-1][0]:g} kimg"))
    slider = Markup()
    if last:
        slider = tag("input", type="range", min=0, max=last, value=last, aria_label=f"{title}: moment of the run")
    return tag("figure", *shown, slider, tag("figcaption", *caption))


# Numbers.


def _curves(run: History) -> Markup:
    figures = [_panel(run, panel) for panel in panels([run])]
    return tag("div", *figures, class_="panels") if figures else Markup()


def _panel(run: History, panel: Panel) -> Markup:
    curves = [(key, thinned(run.series(key))) for key in panel.keys]
    title = tag("span", panel.title, tag("small", f" {panel.unit}") if panel.unit else "")
    drawn = chart(curves, label=f"{panel.title} over thousands of images", log=panel.log)
    names = legend(panel.keys) if len(panel.keys) > 1 else Markup()
    return tag("figure", tag("figcaption", title, tag("output")), drawn, names)


def _metrics(run: History) -> Markup:
    """A row for each evaluation, the best of each column marked."""
    rows = [row for row in run.evals if any(key.startswith("Metrics/") for key in row)]
    keys = [key for key in run.log_keys() if key.startswith("Metrics/") and any(key in row for row in rows)]
    if not keys:
        return Markup()
    names = [key.partition("/")[2] for key in keys]
    best = {key: choose(run.series(key).values) for key, name in zip(keys, names) if (choose := better(name))}
    head = tag("tr", tag("th", "kimg"), *(tag("th", name) for name in names))
    body = []
    for row in rows:
        cells = [
            tag(
                "td",
                number(x) if isinstance(x := row.get(key), (int, float)) else str(x) if x is not None else "",
                class_="best" if key in best and x == best[key] else None,
            )
            for key in keys
        ]
        body.append(tag("tr", tag("th", f"{kimg(row):g}"), *cells))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="numbers"), class_="wide")


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


def _config(run: History, settings: Config | None) -> Markup:
    parts = []
    if settings is not None:
        family = settings.model.family
        G, D = (asdict(schema()) for schema in FAMILIES[family])
        free, others = changes(Config(model=Model(family=family, G=G, D=D)), settings)
        differing = {**others, **free}
        rows = [(name, _shown(new), _shown(old)) for name, (old, new) in sorted(differing.items())]
        parts.append(_table(("changed from the default", "here", "default"), rows))
    try:
        text = untrusted.read(run.path / "config.yaml", CONFIG_BYTES, follow_links=False).decode(errors="replace")
        parts.append(tag("details", tag("summary", "config.yaml, all of it"), tag("pre", text)))
    except FileNotFoundError:
        pass
    except DataError as error:
        run.problems.append(f"{error}: skipped")
    return join(*parts)


def _shown(value: object) -> str:
    return str(value) if value not in ("", None, [], {}) else "-"


def _data(run: History, settings: Config | None) -> Markup:
    """The card of the data set, where it still lies where the run read it."""
    if settings is None or not settings.data.shards:
        return Markup()
    shards = [public(url) for url in settings.data.shards]
    rows = [("shards", ", ".join(shards[:5]) + (f" and {len(shards) - 5} more" if len(shards) > 5 else ""))]
    return _table((), [*rows, *dataset_card.facts(dataset_card.read(settings.data.shards[0]))])


def _environment(run: History) -> Markup:
    starts = read_mapping(run.path / "environment.json", run.problems).get("starts")
    starts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    if not starts:
        return Markup()
    rows = [(str(s.get("time", "")), str(s.get("host", "")), str(s.get("command", ""))) for s in starts]
    last = starts[-1]
    facts = [(name, str(last[name])) for name in ("python", "git") if last.get(name)]
    for name in ("packages", "variables"):
        known = last.get(name)
        facts += [(str(k), str(v)) for k, v in known.items() if v] if isinstance(known, dict) else []
    return join(
        _table(("start", "host", "command"), rows),
        tag("details", tag("summary", "versions at the last start"), _table((), facts)),
    )


def _log(run: History) -> Markup:
    """The end of log.txt."""
    try:
        with untrusted.open_regular(run.path / "log.txt", follow_links=False) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return Markup()
    except DataError as error:
        run.problems.append(f"{error}: skipped")
        return Markup()
    if size > LOG_BYTES:
        text = text.partition("\n")[2]
    return tag("details", tag("summary", "the end of log.txt"), tag("pre", text))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table; without a head, of names and values."""
    if not rows:
        return Markup()
    titles = tag("thead", tag("tr", *(tag("th", title) for title in head))) if head else Markup()
    body = [tag("tr", tag("th", first), *(tag("td", cell) for cell in rest)) for first, *rest in rows]
    return tag("div", tag("table", titles, tag("tbody", *body)), class_="wide")
