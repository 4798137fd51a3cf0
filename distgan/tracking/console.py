"""Show a run in a terminal: one live line there, plain lines everywhere else, and all of it in a file."""

import logging
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import TextIO

from distgan.storage.printable import public_line

LIVE = {"shown": "live"}  # `extra` of a record that only moves the live line
TICK = {"shown": "tick"}  # of one that a terminal shows as the live line, and others as a line

YELLOW, PLAIN, ERASE = "\x1b[33m", "\x1b[0m", "\r\x1b[2K"


def start_logging(folder: Path, rank: int) -> None:
    """Set up logging: rank 0 to the console and log.txt, the others to logs/rank_<r>.txt, warnings only.

    Debug messages, such as tracebacks, go to the file alone.
    """
    log = logging.getLogger("distgan")
    path = folder / "log.txt" if rank == 0 else folder / "logs" / f"rank_{rank:05d}.txt"
    handlers: list[logging.Handler] = [LogFile(path, delay=rank > 0)]
    if rank == 0 and sys.stdout is not None:
        handlers.append(Console(sys.stdout))
        handlers[1].setLevel(logging.INFO)
    log.handlers.clear()
    logging.raiseExceptions = False  # a closed console or a full disk is no reason to print tracebacks there
    log.propagate = False
    log.setLevel(logging.DEBUG)
    for handler in handlers:
        if rank > 0:
            handler.addFilter(lambda record: record.levelno != logging.INFO)
        handler.setFormatter(Lines())
        log.addHandler(handler)


class Lines(logging.Formatter):
    """A record as one line without secrets; a traceback below it is indented, so no line of it looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info and record.exc_info[1]
        return "\n".join([public_line(record.getMessage()), *(traceback_lines(error) if error else [])])


def traceback_lines(error: BaseException) -> list[str]:
    """Return an error's traceback as Python shows it, to follow a line that names the error."""
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    return [f"  {public_line(line)}" for line in text.split("\n")]


class LogFile(logging.FileHandler):
    """A log file; where it cannot be written any more, training continues without it. It has no live line."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "shown", "") == "live":
            return
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


class Console(logging.StreamHandler):
    """A terminal's last line is live: progress replaces it, and other lines go above it. Elsewhere, lines are lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._is_live, self._has_colors = is_terminal(stream), has_colors(stream)
        self._line = ""

    def emit(self, record: logging.LogRecord) -> None:
        shown = getattr(record, "shown", "")
        if not self._is_live:
            if shown != "live":
                super().emit(record)
            return
        try:
            text = self.format(record)
            if shown:
                self._line, text = text, ""
            elif self._has_colors and record.levelno >= logging.WARNING:
                text = YELLOW + text + PLAIN
            width = shutil.get_terminal_size().columns
            self.stream.write(ERASE + (text + "\n" if text else "") + self._line[: width - 1])
            self.flush()
        except Exception:  # as all handlers do; see start_logging
            self.handleError(record)


def is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is a terminal, where a line can be rewritten."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def has_colors(stream: TextIO) -> bool:
    """Return whether to use colors: as NO_COLOR (https://no-color.org) or FORCE_COLOR say, else on a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def console_line(row: dict[str, float], total_images: int, max_minutes: float = 0.0) -> str:
    """Format a line of metrics for the console: progress, speed, losses, D's accuracy, time and memory."""
    images, minutes = row["Progress/images"], row["Perf/total_hours"] * 60
    left_sec = max(0, total_images - images) / 1000 * row["Perf/sec_per_kimg"]
    if max_minutes:
        left_sec = min(left_sec, max(0.0, 60 * (max_minutes - minutes)))
    losses = " ".join(
        f"{name} {row[f'Loss/{name}']:{'.3f' if name in 'DG' else '.3g'}}"
        for name in ("D", "G", "r1", "r2", "gp")
        if f"Loss/{name}" in row
    )
    memory = row.get("Resources/gpu_mem_peak_gb", row["Resources/cpu_mem_gb"])
    return " | ".join(
        [
            f"kimg {images / 1000:.1f}/{total_images / 1000:g} {min(1, images / total_images):6.1%}",
            f"{duration(minutes * 60)} eta {duration(left_sec)}",
            f"{row['Perf/sec_per_kimg']:.3g} s/kimg {row['Perf/img_per_sec']:.0f} img/s",
            losses or "no step was taken",
            f"gap {row['Logits/real_minus_fake']:.2f} acc {row['Logits/D_accuracy']:.2f}",
            f"data {row['Perf/data_wait_pct']:.0f}% mem {memory:.1f}G",
        ]
    )


def evaluation_line(row: dict[str, float | None], is_best: bool) -> str:
    """Format an evaluation for the console."""
    values = {name.removeprefix("Metrics/"): value for name, value in row.items() if name.startswith("Metrics/")}
    listed = "  ".join(f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in values.items())
    spent = f"{row['Perf/eval_sec']:.1f} s, {row['Perf/eval_pct']:.1f}% of the time so far"
    return f"kimg {row['Progress/kimg']:.1f} evaluated ({spent}): {listed}{', the best so far' if is_best else ''}"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units."""
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m {int(seconds) % 60:02d}s"
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes // 1440}d {minutes // 60 % 24:02d}h"
