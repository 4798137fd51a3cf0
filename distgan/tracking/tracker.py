"""Write a run's numbers and images to the console, log.txt, metrics.jsonl and W&B. metrics.jsonl is the truth."""

import logging
import math
import time
from pathlib import Path

import numpy as np

from distgan.config.load import to_yaml
from distgan.config.records import for_records, to_dict
from distgan.config.schema import Config
from distgan.data import image_grid
from distgan.distributed import preemption
from distgan.errors import DistganError, DivergedError, StopReason
from distgan.storage.atomic import replace_file
from distgan.storage.run_dir import RunDir
from distgan.tracking.alerts import Alerts
from distgan.tracking.console import LIVE, TICK, console_line, evaluation_line
from distgan.tracking.trackers import TRACKERS, RunTracker, TrackedRun
from distgan.tracking.wandb_logger import FINISH_SEC, WandbLogger, start_wandb

log = logging.getLogger("distgan")

LIVE_SEC = 0.2  # from one move of the live line to the next
FAILED_SEC = 20  # for sending a failure to W&B; a launcher gives a rank half a minute


class Tracker:
    """Writes what a run reports; on ranks other than 0, does nothing.

    Args:
        wandb_id: Of the W&B run to resume, or of a new one.
        logged_images: The last image count ever logged: a resumed run's rows up to there are equal, and W&B has them.
    """

    def __init__(self, config: Config, folder: RunDir, is_main: bool, wandb_id: str, logged_images: int) -> None:
        self._folder, self._is_main, self.logged_images = folder, is_main, logged_images
        self._train, self._alerts = config.train, Alerts()
        self._wandb: WandbLogger | None = None
        self._others: list[RunTracker] = []
        self._grids: dict[str, np.ndarray] = {}
        self._histograms: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._evaluated: dict[str, float] = {}
        self._last_row: dict[str, float] = {}
        self._last_metric = ""
        self._row_at = self._shown_at = 0.0
        if is_main:
            recorded = for_records(config)
            folder.write_config(to_yaml(recorded))
            settings = to_dict(recorded) | {"environment": folder.start}
            self._wandb = start_wandb(
                recorded.wandb, folder, settings, wandb_id, lambda: preemption.request_stop(StopReason.FINISHED)
            )
            run = TrackedRun(folder.path, settings, logged_images)
            self._others = [TRACKERS[name](run) for name in config.run.trackers]

    def log_images(self, name: str, file: str, images: list[np.ndarray], columns: int) -> None:
        """Save a grid of images among the samples; W&B gets it with the next row."""
        if self._is_main:
            self._grids[name] = image_grid.grid(images, columns)
            image_grid.save_png(self._folder.samples / file, self._grids[name])

    def write_legend(self, file: str, text: str) -> None:
        """Write what the rows of grids show as a text among the samples."""
        if self._is_main:
            replace_file(self._folder.samples / file, text)

    def log_histogram(self, name: str, values: np.ndarray) -> None:
        """Keep a histogram of numbers, for W&B only; values that are not finite are left out."""
        self._histograms[name] = np.histogram(values[np.isfinite(values)], bins=64)

    def log_evaluation(self, row: dict[str, float | None], is_best: bool) -> None:
        """Write an evaluation as a line of evals.jsonl; W&B gets it with the next row."""
        if not self._is_main:
            return
        self._folder.add_evaluation(row)
        log.info(evaluation_line(row, is_best))
        self._evaluated = {name: math.nan if value is None else value for name, value in row.items()}
        metrics = {
            name.removeprefix("Metrics/"): x for name, x in self._evaluated.items() if name.startswith("Metrics/")
        }
        self._last_metric = next((f" | {name} {value:.4g}" for name, value in metrics.items()), "")
        if is_best and self._wandb is not None and (row["Progress/images"] or 0) >= self.logged_images:
            self._wandb.alert("New best", evaluation_line(row, is_best), "INFO")

    def log_restoration(self, images: int, values: dict[str, float]) -> None:
        """Write metrics of restored samples, if there are any, as a line of evals.jsonl."""
        if not self._is_main or not values:
            return
        row = {"Progress/images": images, "Progress/kimg": images / 1000}
        row |= {name: float(f"{value:.6g}") for name, value in values.items()}
        self._folder.add_evaluation(row)
        self._evaluated |= row
        self._last_metric = f" | psnr {values['Restoration/psnr']:.4g}"

    def log_metrics(self, images: int, values: dict[str, float]) -> None:
        """Write a line of metrics to the console, metrics.jsonl and W&B, with images and evaluations since the last."""
        if not self._is_main:
            return
        row = {"Progress/images": images, "Progress/kimg": images / 1000}
        row |= {name: float(f"{value:.6g}") for name, value in values.items()}
        self._folder.add_metrics(row)
        line = console_line(row, self._train.images, self._train.max_minutes)
        log.info(line + self._last_metric, extra=TICK)
        self._last_row, self._row_at = row, time.monotonic()
        if images > self.logged_images:
            self._send(images, self._evaluated | row)
        self._grids, self._histograms, self._evaluated = {}, {}, {}
        for title, text in self._alerts.check(row):
            self.alert(title, text)

    def flush_images(self, images: int) -> None:
        """Send images and evaluations that came between two lines of metrics; they have a step of their own."""
        pending = bool(self._grids or self._histograms or self._evaluated)
        if pending and (images > self.logged_images or images == self.logged_images == 0):
            self._send(images, self._evaluated | {"Progress/images": images, "Progress/kimg": images / 1000})
        self._grids, self._histograms, self._evaluated = {}, {}, {}

    def _send(self, images: int, row: dict[str, float]) -> None:
        """Give W&B and other trackers a row, with the images since the last one."""
        if self._wandb is not None:
            self._wandb.log(images, row, self._grids, self._histograms)
        for tracker in self._others:
            tracker.log(images, row, self._grids)

    def update_progress(self, images: int) -> None:
        """Move the live line of a terminal; all but progress and time is of the last line of metrics."""
        now = time.monotonic()
        if not self._is_main or now - self._shown_at < LIVE_SEC:
            return
        self._shown_at = now
        if self._last_row:
            hours = self._last_row["Perf/total_hours"] + (now - self._row_at) / 3600
            row = self._last_row | {"Progress/images": images, "Perf/total_hours": hours}
            line = console_line(row, self._train.images, self._train.max_minutes) + self._last_metric
        else:
            line = f"kimg {images / 1000:.1f}/{self._train.images / 1000:g} {images / self._train.images:6.1%}"
        log.info(line, extra=LIVE)

    def log_checkpoint(self, path: Path, images: int, is_best: bool = False) -> None:
        """Send W&B a new checkpoint as wandb.checkpoints says, but not once more after a resume."""
        if self._wandb is not None and images >= self.logged_images:
            self._wandb.log_checkpoint(path, images, is_best)

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Show a warning on the console, and by W&B where alerts are enabled."""
        if self._is_main:
            log.warning(f"{title} {text}")
            if self._wandb is not None:
                self._wandb.alert(title, text, level)

    def finish(self, reason: StopReason, images: int) -> None:
        """End the records of a run that finished or was asked to stop; its checkpoint is written."""
        log.info("", extra=LIVE)
        if self._evaluated:  # made after the last row, which has taken that step
            self._grids, self._histograms = {}, {}
            self._send(images + 1, self._evaluated)
        for tracker in self._others:
            tracker.finish(reason.word)
        if self._wandb is not None:
            if reason == StopReason.PREEMPTED:
                self._wandb.alert("Preempted", f"saved at {images} images; the same command resumes from there", "WARN")
            self._wandb.finish(reason.exit_code, {"images": images, "state": reason.word}, FINISH_SEC)

    def fail(self, error: Exception, images: int) -> None:
        """End the records of a run that failed; the command line reports the error."""
        log.info("", extra=LIVE)
        for tracker in self._others:
            try:
                tracker.finish("failed")
            except Exception as problem:  # the run's own error counts
                log.warning(f"{type(tracker).__name__} could not be finished: {type(problem).__name__}: {problem}")
        if self._wandb is not None:
            title = "Diverged" if isinstance(error, DivergedError) else "Failed"
            self._wandb.alert(title, f"at {images} images: {type(error).__name__}: {error}", "ERROR")
            code = error.exit_code if isinstance(error, DistganError) else 1
            self._wandb.finish(code, {"images": images, "state": "failed"}, FAILED_SEC)
