"""Read a run's records, for plots and reports: of runs that still train, were killed, or are of another version.

Records that cannot be read are skipped with a warning, so that the rest is shown.
"""

import fcntl
import math
from dataclasses import dataclass, field
from pathlib import Path

from distgan.errors import ConfigError, DataError
from distgan.storage.home import user_path
from distgan.storage.untrusted import json_of, open_regular, parse, read_json, read_lines

Row = dict[str, object]  # of numbers by log key, as far as this version knows


@dataclass
class Series:
    """One curve: values by thousands of images, as they were written."""

    kimg: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class History:
    """The records of a run folder.

    Attributes:
        rows, evals: Lines of metrics.jsonl and evals.jsonl that can be read and say at which image they stand.
        status: status.json, or {}.
        problems: What was skipped, as readable lines.
    """

    path: Path
    rows: list[Row]
    evals: list[Row]
    status: Row
    problems: list[str]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def log_keys(self) -> list[str]:
        """Return log keys with at least one finite number, in the order in which they were first written."""
        rows = self.rows + self.evals
        return list(dict.fromkeys(key for row in rows for key, value in row.items() if _number(value) is not None))

    def series(self, key: str) -> Series:
        """Return a key's finite numbers. Where metrics and evaluations both have some, evaluations are taken."""
        found = Series()
        for row in self.evals if any(_number(row.get(key)) is not None for row in self.evals) else self.rows:
            value = _number(row.get(key))
            if value is not None:
                found.kimg.append(kimg(row))
                found.values.append(value)
        return found

    def is_held(self) -> bool:
        """Return whether a process of this machine has the folder open for a run."""
        try:
            with open_regular(self.path / ".lock", follow_links=False) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except (OSError, DataError):
            return False
        return False

    def last(self, key: str) -> float | None:
        """Return the newest number of a key."""
        return next((x for row in reversed(self.rows) if (x := _number(row.get(key))) is not None), None)


def read(path: str | Path) -> History:
    """Read the records of a run folder. Raises ConfigError where it is none."""
    folder = user_path(path)
    if not folder.is_dir():
        raise ConfigError(f"{path}: no such run folder")
    if not any((folder / name).exists() for name in ("metrics.jsonl", "config.yaml", "status.json")):
        raise ConfigError(f"{path} is not a run folder: it has no metrics.jsonl, config.yaml or status.json")
    problems: list[str] = []
    rows = _rows(folder / "metrics.jsonl", problems)
    evals = _rows(folder / "evals.jsonl", problems)
    return History(folder, rows, evals, read_mapping(folder / "status.json", problems), problems)


def kimg(row: Row) -> float:
    """Return the thousands of images of a row."""
    images, thousands = _number(row.get("Progress/images")), _number(row.get("Progress/kimg"))
    return images / 1000 if images is not None else (thousands or 0.0)


def read_mapping(path: Path, problems: list[str]) -> Row:
    """Read a small JSON file; {} where there is none, or with a warning where it is not a mapping."""
    try:
        found = read_json(path, follow_links=False, allow_nan=True)
        return parse(dict[str, object], found, path)
    except FileNotFoundError:
        return {}
    except DataError as error:
        problems.append(f"{error}: skipped")
        return {}


def _rows(path: Path, problems: list[str]) -> list[Row]:
    rows, bad, number, line = [], [], 0, b""
    try:
        for number, line in enumerate(read_lines(path), 1):
            if (row := _row(line)) is not None:
                rows.append(row)
            elif line.strip():
                bad.append(number)
    except FileNotFoundError:
        return []
    except DataError as error:
        problems.append(f"{error}: skipped")
        return []
    if bad == [number] and not line.endswith(b"\n"):
        problems.append(f"{path}: its last line is half written (the run is live, or was killed): skipped")
    elif bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        problems.append(f"{path}: line {bad[0]}{more} cannot be read, or lacks Progress/images: skipped")
    return rows


def _row(line: bytes) -> Row | None:
    """Return the values of a line; None where it cannot be read, or has no image count."""
    try:
        row = parse(dict[str, object], json_of(line, "line", allow_nan=True), "line")
    except DataError:
        return None
    return row if any(_number(row.get(f"Progress/{unit}")) is not None for unit in ("images", "kimg")) else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None
