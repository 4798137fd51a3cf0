"""`distgan evaluate --watch RUN`: measure each new checkpoint of a run, in another job than the training."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distgan.distributed.process_group import World
from distgan.errors import ConfigError, DataError
from distgan.evaluation.evaluate import evaluate
from distgan.evaluation.report import EvaluateOptions, measurement_key
from distgan.storage import checkpoint_folder
from distgan.storage.run_dir import RunDir

log = logging.getLogger("distgan")

POLL_SEC = 5.0  # between two checks for new checkpoints
OVER = ("finished", "failed")  # states of a run that saves no more checkpoints; a preempted one will be resumed


def watch_checkpoints(
    world: World,
    run: str,
    overrides: Sequence[str],
    options: EvaluateOptions,
    show_report: Callable[[dict], None],
    poll_sec: float = POLL_SEC,
) -> int:
    """Measure the checkpoints of a run, oldest first, as they are saved; called by all ranks. Returns their number.

    A checkpoint with a report of the same measurement is skipped, so that the same command continues where it was
    stopped. It returns when the run has ended and all checkpoints are measured.

    Args:
        show_report: Shows a report, on rank 0.
    """
    folder = RunDir(run)
    if not folder.checkpoints.is_dir():
        raise ConfigError(f"--watch {run}: not a run folder, which holds checkpoints/")
    if options.out:
        raise ConfigError("--out is of one report; with --watch there is one for each checkpoint, in evaluations/")
    seen: set[str] = _reported(folder.path, measurement_key(overrides, options))
    num = 0
    while True:
        # The state is read first: a run that has ended then has saved its last checkpoint.
        is_over = world.broadcast_object(folder.read_status().get("state") in OVER)
        name = world.broadcast_object(_next(folder.checkpoints, seen))
        if not name and is_over:
            return num
        if not name:
            time.sleep(poll_sec)
            continue
        seen.add(name)
        try:
            report = evaluate(world, str(folder.checkpoints / name), overrides, options)
        except DataError as error:
            if world.broadcast_object((folder.checkpoints / name).exists()):
                raise
            log.warning(f"{name} was deleted before it was evaluated ({error})")
            continue
        num += 1
        if world.is_main:
            show_report(report)


def _next(checkpoints: Path, seen: set[str]) -> str:
    """Return the name of the oldest checkpoint that was not measured, empty if there is none."""
    return next((path.name for path in checkpoint_folder.newest_first(checkpoints)[::-1] if path.name not in seen), "")


def _reported(run: Path, asked: dict) -> set[str]:
    """Return the names of checkpoints with a report of the same measurement."""
    names = set()
    for path in (run / "evaluations").glob("*.json"):
        try:
            report = json.loads(path.read_text())
            if report.get("asked") == asked:
                names.add(report["subject"]["checkpoint"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(f"{path} is not a report ({error}): skipped")
    return names
