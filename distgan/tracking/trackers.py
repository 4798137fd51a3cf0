"""Trackers beside W&B, by name: `run.trackers`. None is built in; a plugin adds them (docs/plugins.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it is made.

    Attributes:
        folder: The run folder.
        settings: The whole config as plain values, without secrets.
        logged_images: The last image count that earlier starts logged; 0 in a new run.
    """

    folder: Path
    settings: Mapping[str, object]
    logged_images: int


class RunTracker(Protocol):
    """Where metrics go. Only rank 0 makes and calls one; an exception ends the run as failed."""

    def log(self, images: int, values: Mapping[str, float], grids: Mapping[str, np.ndarray]) -> None:
        """Take numbers by log key, and grids of images uint8 [H, W, 3] by name. Each image count comes once, rising;
        a resumed run does not repeat those of earlier starts."""
        ...

    def finish(self, state: str) -> None:
        """Take the end of this start: finished, preempted, interrupted or failed."""
        ...


TRACKERS: dict[str, Callable[[TrackedRun], RunTracker]] = {}
