"""A run on W&B: rows, images, alerts, checkpoints. The only door to wandb.

Fenced: whatever happens to the client, its side process, the network or the server, one line says so and training goes
on. Offline, all of it is in the run folder until `wandb sync` sends it.
"""

import contextlib
import logging
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from distgan.config.schema import Wandb
from distgan.errors import StopReason
from distgan.metrics.names import better
from distgan.storage.formatting import one_line
from distgan.storage.printable import public_line
from distgan.storage.run_dir import RunDir
from distgan.storage.urls import public
from distgan.tracking.background_worker import BackgroundWorker
from distgan.tracking.wandb_mode import mode_of_environment

if TYPE_CHECKING:
    from wandb import Run

CREDENTIAL = re.compile("SLURM_.*(JWT|TOKEN|KEY|SECRET|PASS)")  # the client records and sends all of SLURM_*
log = logging.getLogger("distgan")

INIT_SEC, START_SEC = 20, 150  # for a server to take the run; for all that a start may try
CALL_SEC = 120  # for one row or file
FINISH_SEC = 120  # for what is left; what does not arrive is in the run folder
ALERT_EVERY_SEC = 60  # of one title


class WandbLogger:
    """Sends a run's records to W&B. Nothing here raises or waits, but for `finish`."""

    def __init__(self, run: "Run", worker: BackgroundWorker, policy: str, keep: Path) -> None:
        """`policy` is `wandb.checkpoints`; `keep` is a folder for what is still to be sent."""
        self._run, self._worker, self._policy, self._keep = run, worker, policy, keep
        self._defined: set[str] = set()

    def log(
        self,
        images: int,
        values: dict[str, float],
        grids: dict[str, np.ndarray],
        histograms: dict[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """Send a row, at a larger image count than the last one.

        Args:
            grids: Images by log key, uint8 [H, W, 3].
            histograms: Counts and edges by log key, as of `numpy.histogram`.
        """
        self._worker.submit("log", lambda: self._log(images, values, grids, histograms))

    def _log(self, images: int, values: dict, grids: dict, histograms: dict) -> None:
        import wandb

        for name in values.keys() - self._defined:
            if name.startswith("Metrics/") and (best := better(name.removeprefix("Metrics/"))):
                self._run.define_metric(name, step_metric="Progress/kimg", summary=f"{best.__name__},last")
        self._defined |= values.keys()
        with tempfile.TemporaryDirectory() as folder:  # of files that the client copies while it logs
            media: dict[str, wandb.Histogram | wandb.Image] = {}
            media |= {name: wandb.Histogram(np_histogram=counts) for name, counts in histograms.items()}
            for i, (name, pixels) in enumerate(grids.items()):
                # Files, because the client takes up to a second to make a PNG of a grid, and rescales no floats.
                Image.fromarray(pixels).save(f"{folder}/{i}.jpg", quality=92, subsampling=0)
                media[name] = wandb.Image(f"{folder}/{i}.jpg", caption=f"{images / 1000:g} kimg")
            self._run.log({**values, **media}, step=images, commit=True)

    def alert(self, title: str, text: str, level: str) -> None:
        """`level` is INFO, WARN or ERROR."""
        title, text = public_line(title), public_line(text)
        self._worker.submit("alert", lambda: self._run.alert(title, text, level, ALERT_EVERY_SEC))

    def log_checkpoint(self, path: Path, images: int, is_best: bool) -> None:
        """Send a checkpoint, as `wandb.checkpoints` says."""
        if self._policy in ("reference", "all") or (self._policy == "best" and is_best):
            files = [path / "G_ema.safetensors"] if self._policy == "best" else sorted(path.iterdir())
            if self._policy != "reference":
                files = [self._kept(file, path.name) for file in files]
            self._worker.submit("checkpoint", lambda: self._log_artifact(path, files, images, is_best))

    def _log_artifact(self, path: Path, files: list[Path], images: int, is_best: bool) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self._run.id}", type="model", metadata={"images": images})
        for file in files:
            if self._policy == "reference":
                artifact.add_reference(file.resolve().as_uri(), name=file.name, checksum=False)
            else:  # immutable: else the client copies it to the user's home first
                artifact.add_file(str(file), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=["latest", path.name, *(["best"] if is_best else [])])

    def _kept(self, file: Path, name: str) -> Path:
        """Give a file a second name, since the checkpoint may be deleted before the client has sent it."""
        kept = self._keep / name / file.name
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not kept.exists():
                os.link(file, kept)
        except OSError:  # a file system without links: then it had better be sent soon
            return file
        return kept

    def finish(self, exit_code: int, summary: dict[str, object], limit_sec: float) -> None:
        """Send what is left; what does not arrive within the time limit stays in the run folder."""

        def end() -> None:
            self._run.summary.update(summary)
            if exit_code == StopReason.PREEMPTED.exit_code:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)

        self._worker.submit("finish", end)
        if not self._worker.close(limit_sec):
            end_side_process()  # else the client waits for it when Python exits, for ever if it hangs


def end_side_process() -> None:
    """Kill the client's own process; what it was given is in the run folder."""
    import psutil
    import wandb

    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.name() == "wandb-core":
                process.kill()
                process.wait(5)
    with contextlib.suppress(Exception):  # which is what it does here, and would do with a traceback at exit
        wandb.teardown()


def start_wandb(
    settings: Wandb, folder: RunDir, config: dict, run_id: str, on_stop: Callable[[], None]
) -> WandbLogger | None:
    """Start W&B in the mode that the settings, the environment and the network allow; None where it cannot be.

    Never asks, never raises, and waits for a server for seconds only. WANDB_MODE in the environment wins.

    Args:
        on_stop: Called when somebody presses "stop run" on the web page.
    """
    asked, _ = mode_of_environment(os.environ)
    if (asked or settings.mode) == "disabled":
        return None
    worker, started, done = BackgroundWorker("wandb", CALL_SEC), [], threading.Event()

    def start() -> None:
        try:
            started.append(_start(settings, folder, config, run_id, asked, on_stop, worker))
        except Exception as error:  # see BackgroundWorker
            log.warning(f"wandb: could not start ({one_line(error)}); metrics go to metrics.jsonl alone")
        done.set()

    worker.submit("start", start)
    if not done.wait(START_SEC):
        log.warning(f"wandb: could not start in {START_SEC} s; metrics go to metrics.jsonl alone")
    if not started:
        worker.close(0)
        return None
    return WandbLogger(started[0], worker, settings.checkpoints, folder.path / "wandb" / "checkpoints")


def _start(
    settings: Wandb,
    folder: RunDir,
    config: dict,
    run_id: str,
    asked: str,
    on_stop: Callable[[], None],
    worker: BackgroundWorker,
) -> "Run":
    for name, value in {
        "WANDB_SILENT": "true",  # what there is to say is said here, in a line
        "WANDB_DATA_DIR": str(folder.path / "wandb"),  # not in the user's home, which may be small
        "WANDB_CACHE_DIR": str(folder.path / "wandb"),
    }.items():
        os.environ.setdefault(name, value)
    import wandb

    mode, reason = asked or settings.mode, ""
    if mode == "auto":
        problem = _key_problem(wandb)
        mode, reason = ("offline", f" ({problem})") if problem else ("online", "")
    try:
        run = _init(wandb, settings, folder, config, run_id, None if asked else mode, on_stop)
    except Exception as error:
        if mode != "online":
            raise
        mode, reason = "offline", f" ({one_line(error)})"
        wandb.teardown()
        run = _init(wandb, settings, folder, config, run_id, mode, on_stop)
    where = Path(run.dir).parent
    # Each start of the run leaves a folder; names begin with the time, so that the shell takes them in order.
    parts = f"{shlex.quote(str(where.parent))}/{where.name.partition('run-')[0]}run-*-{run_id}*"
    sync = f'for part in {parts}; do wandb sync "$part"; done'
    worker.hint = f"What has not arrived: {sync}"
    offline = f"{mode}{reason}. View: wandb leet {where} · Upload later, all starts in order: {sync}"
    log.info(f"wandb: {run.url if mode == 'online' else offline}")
    return run


def _key_problem(wandb: ModuleType) -> str:
    """Return what is wrong with the API key, or ""; neither asks for one nor waits for the server to check it."""
    try:
        return "" if wandb.login(prompt=False, verify=False) else "no API key"
    except Exception as error:  # a key of another form
        return one_line(error)


def _init(
    wandb: ModuleType,
    settings: Wandb,
    folder: RunDir,
    config: dict,
    run_id: str,
    mode: str | None,
    on_stop: Callable[[], None],
) -> "Run":
    wanted = {
        "x_transaction_log_flush_interval": 1,  # a killed run loses a second of its record instead of fifteen
        "init_timeout": INIT_SEC,
        "finish_timeout": FINISH_SEC - 10,  # before the background worker reports a hang
        "finish_timeout_raises": True,
        "stop_fn": on_stop,  # else the web page's button raises KeyboardInterrupt in the middle of a step
        "x_stats_track_process_tree": True,
        "silent": True,
    }
    supported = wandb.Settings.model_fields  # names that begin with x_ come and go
    arguments, sys.argv = sys.argv, [public(word) for word in sys.argv]  # which the client sends
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if CREDENTIAL.match(name)}
    try:
        run = wandb.init(
            mode=mode,
            dir=str(folder.path),
            project=settings.project,
            entity=settings.entity or None,
            name=settings.name or folder.path.name,
            group=settings.group or None,
            tags=settings.tags or None,
            notes=settings.notes or None,
            config=config,
            id=run_id,
            resume="allow",
            settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in supported}),
        )
    finally:
        sys.argv = arguments
        os.environ.update(hidden)
    run.define_metric("Progress/kimg", hidden=True)
    run.define_metric("*", step_metric="Progress/kimg")
    return run
