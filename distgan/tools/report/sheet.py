"""Charts side by side on one sheet, which becomes an .svg or a .png."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from distgan.tools.report.chart import HEIGHT, WIDTH, Chart
from distgan.tools.report.render import render

COLUMNS, GAP, LINE = 3, 24, 18  # of charts; pixels between them, and of a line of text
PAPER, INK, SOFT, GRID = "#ffffff", "#1d1f23", "#6a7078", "#e4e5e3"
SCALE = 2  # pixels of a .png for one of the sheet
BAND = 0.18  # opacity of the area around a curve
FINE = 2  # a .png is drawn this many times larger, then reduced, so that its curves are smooth


@dataclass(frozen=True)
class Key:
    """A line of a legend: a name behind a dot of its color; x, y: the upper left corner of the dot."""

    name: str
    color: str
    x: int
    y: int


@dataclass(frozen=True)
class Placed:
    """A chart on a sheet: x, y are those of its upper left corner; its title is above."""

    title: str
    chart: Chart
    x: int
    y: int


@dataclass(frozen=True)
class Sheet:
    """Everything on the sheet, in pixels."""

    title: str
    keys: list[Key]
    charts: list[Placed]
    width: int
    height: int


def arrange(title: str, legend: Sequence[tuple[str, str]], charts: Sequence[tuple[str, Chart]]) -> Sheet:
    """Place charts with their titles in rows.

    Args:
        legend: Names and colors that all charts share, which stand at the top; none: each chart of several curves has
            its own below it.
    """
    keys: list[Key] = []
    placed: list[Placed] = []
    y = GAP + (LINE if title else 0)
    for name, color in legend:
        keys.append(Key(name, color, GAP, y))
        y += LINE
    for start in range(0, len(charts), COLUMNS):
        y += LINE
        most = 0
        for column, (heading, chart) in enumerate(charts[start : start + COLUMNS]):
            x = GAP + column * (WIDTH + GAP)
            placed.append(Placed(heading, chart, x, y))
            own = chart.curves if not legend and len(chart.curves) > 1 else []
            keys += [Key(curve.name, curve.color, x + chart.left, y + HEIGHT + i * LINE) for i, curve in enumerate(own)]
            most = max(most, len(own))
        y += HEIGHT + most * LINE + GAP
    return Sheet(title, keys, placed, GAP + min(COLUMNS, len(charts)) * (WIDTH + GAP), y)


def write(sheet: Sheet, file: Path, kind: str) -> None:
    """Write a sheet as ".svg" or ".png"."""
    if kind == ".svg":
        file.write_text(
            render("sheet.svg", sheet=sheet, paper=PAPER, ink=INK, soft=SOFT, grid=GRID, band=BAND), encoding="utf-8"
        )
    else:
        _image(sheet).save(file, "PNG")


def _image(sheet: Sheet) -> Image.Image:
    image = Image.new("RGB", (sheet.width * SCALE, sheet.height * SCALE), PAPER)
    pen = ImageDraw.Draw(image)
    _write(pen, sheet.title, (GAP, GAP + 8), "ls", 16)
    for key in sheet.keys:
        image.paste(_dot(key.color), (key.x * SCALE, key.y * SCALE))
        _write(pen, key.name, (key.x + 14, key.y + 8), "ls", 11, SOFT)
    for placed in sheet.charts:
        chart, x, y = placed.chart, placed.x, placed.y
        image.paste(_curves(chart), (x * SCALE, y * SCALE))
        _write(pen, placed.title, (x, y), "ls", 13)
        for tick, text in chart.y_ticks:
            _write(pen, text, (x + chart.left - 6, y + tick + 3), "rs", 10, SOFT)
        for tick, text in chart.x_ticks:
            _write(pen, text, (x + tick, y + chart.bottom + 16), "ms", 10, SOFT)
    return image


def _curves(chart: Chart) -> Image.Image:
    """Return a chart's curves and grid lines, without any text."""
    scale = SCALE * FINE
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), PAPER)
    pen = ImageDraw.Draw(image)
    for y, _ in chart.y_ticks:
        pen.line([(chart.left * scale, y * scale), (chart.right * scale, y * scale)], GRID, scale)
    for curve in chart.curves:
        if len(curve.band) > 2:
            pen.polygon([(x * scale, y * scale) for x, y in curve.band], _pale(curve.color))
    for curve in chart.curves:
        points = [(x * scale, y * scale) for x, y in curve.points]
        if len(points) > 1:
            pen.line(points, curve.color, round(1.5 * scale), "curve")
        for point in points if curve.has_dots else ():
            pen.circle(point, 2 * scale, curve.color)
    return image.reduce(FINE)


def _pale(color: str) -> tuple[int, ...]:
    """Return a color of few parts on paper."""
    return tuple(round(255 + BAND * (part - 255)) for part in ImageColor.getrgb(color))


def _dot(color: str) -> Image.Image:
    """Return the dot before a key's name, 8 by 8."""
    side = 8 * SCALE * FINE
    image = Image.new("RGB", (side, side), PAPER)
    ImageDraw.Draw(image).circle((side / 2, side / 2), side / 2 - 1, color)
    return image.reduce(FINE)


def _write(
    pen: ImageDraw.ImageDraw, text: str, at: tuple[float, float], anchor: str, size: int, color: str = INK
) -> None:
    """Write a line of text at (x, y); what is not ASCII, which Pillow's own font lacks, as escapes."""
    shown = text.encode("ascii", "backslashreplace").decode()
    pen.text((at[0] * SCALE, at[1] * SCALE), shown, color, ImageFont.load_default(size * SCALE), anchor)
