"""The result of a measurement: rows of figures, as a table or for a program."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distgan.version import __version__


@dataclass(frozen=True)
class Row:
    """A line of the table: its figures, one for each round."""

    name: str
    unit: str
    figures: list[float]

    def record(self) -> dict[str, object]:
        """Return the row for JSON."""
        low, high = min(self.figures), max(self.figures)
        batch_plan = {"median": self.median, "low": low, "high": high}
        return {"name": self.name, "unit": self.unit, **batch_plan, "figures": self.figures}

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    def __str__(self) -> str:
        batch_plan = f"[{min(self.figures):.4g} .. {max(self.figures):.4g}]" if len(self.figures) > 1 else ""
        return f"{self.name:64s} {self.median:>10.4g} {self.unit:9s} {batch_plan}".rstrip()


def report(rows: Sequence[Row], world: int, as_json: bool) -> list[str]:
    """Return the lines of the table, or its figures as JSON."""
    about = {
        "ranks": world,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "distgan": __version__,
    }
    if as_json:
        return json.dumps(about | {"rows": [row.record() for row in rows]}, indent=1).splitlines()
    head = ", ".join(f"{name} {value}" for name, value in about.items())
    return [f"{head}; median over rounds [lowest .. highest]", *map(str, rows)]
