"""Where a run's numbers and pictures go: the console, log.txt, metrics.jsonl and W&B. The only door to wandb.

metrics.jsonl is the truth. W&B is fenced: whatever happens to it, one line says so and training goes on.
"""

import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from distgan import sample, stop
from distgan.config import Config, Wandb, to_dict, without_secrets
from distgan.configfile import to_yaml
from distgan.data.address import public_text
from distgan.runfolder import RunFolder

log = logging.getLogger("distgan")


def start_logging(folder: Path, rank: int) -> None:
    """Rank 0 speaks on the console and in log.txt; the others, of warnings only, in logs/rank_<r>.txt.

    Debug messages, such as tracebacks, go to the file alone.
    """
    path = folder / "log.txt" if rank == 0 else folder / "logs" / f"rank_{rank:05d}.txt"
    handlers: list[logging.Handler] = [LogFile(path, delay=rank > 0)]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setLevel(logging.INFO)
    log.handlers.clear()
    logging.raiseExceptions = False  # a closed console or a full disk is no reason to print tracebacks there
    log.propagate = False
    log.setLevel(logging.DEBUG)
    for handler in handlers:
        if rank > 0:
            handler.addFilter(lambda record: record.levelno != logging.INFO)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


class LogFile(logging.FileHandler):
    """A file that training goes on without, where it cannot be opened any more."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)


class Tracker:
    """Writes down what a run reports; on ranks other than 0, does nothing.

    Args:
        wandb_id: Of the W&B run that is taken up again, or of a new one.
        logged_images: The last image count ever logged: a resumed run's rows up to there are equal, and W&B has them.
    """

    def __init__(self, config: Config, folder: RunFolder, is_main: bool, wandb_id: str, logged_images: int) -> None:
        self._folder, self._is_main, self.logged_images = folder, is_main, logged_images
        self._train, self._grids, self._evaluated = config.train, {}, {}
        self._wandb = None
        if is_main:
            told = without_secrets(config)
            folder.write_config(to_yaml(told))
            self._wandb = start_wandb(config.wandb, folder, to_dict(told), wandb_id, lambda: stop.ask("finished"))

    def grid(self, name: str, file: str, pictures: list[np.ndarray], columns: int) -> None:
        """Save a grid of pictures among the samples; W&B gets it with the next row."""
        if self._is_main:
            self._grids[name] = sample.grid(pictures, columns)
            sample.save_png(self._folder.samples / file, self._grids[name])

    def evaluation(self, row: dict[str, float | None], is_best: bool) -> None:
        """An evaluation, as a line of evals.jsonl; W&B gets it with the next row."""
        if not self._is_main:
            return
        self._folder.add_evaluation(row)
        log.info(evaluation_line(row, is_best))
        self._evaluated = {name: math.nan if value is None else value for name, value in row.items()}

    def row(self, images: int, values: dict[str, float]) -> None:
        """All that is due at this moment, as one line on each way."""
        if not self._is_main:
            return
        row = {"Progress/images": images, "Progress/kimg": images / 1000}
        row |= {name: float(f"{value:.6g}") for name, value in values.items()}
        self._folder.add_metrics(row)
        log.info(console_line(row, self._train.images, self._train.max_minutes))
        if self._wandb is not None and images > self.logged_images:
            self._wandb.log(images, self._evaluated | row, self._grids)
        self._grids, self._evaluated = {}, {}

    def alert(self, title: str, text: str) -> None:
        """Something that a person should see: on the console, and by W&B where they asked for it there."""
        if self._is_main:
            log.warning(f"{title} {text}")
            if self._wandb is not None:
                self._wandb.alert(title, text)

    def finish(self, reason: str, images: int) -> None:
        if self._wandb is not None:
            if self._evaluated:  # made after the last row, which has taken that step
                self._wandb.log(images + 1, self._evaluated, {})
            self._wandb.finish(stop.EXIT_CODES[reason], {"images": images, "state": reason})


def console_line(row: dict[str, float], total_images: int, max_minutes: float = 0.0) -> str:
    """A tick for a person: progress, speed, losses, D's verdicts, where time and memory went."""
    images, minutes = row["Progress/images"], row["Perf/total_hours"] * 60
    left_sec = (total_images - images) / 1000 * row["Perf/sec_per_kimg"]
    if max_minutes:
        left_sec = min(left_sec, max(0.0, 60 * (max_minutes - minutes)))
    penalty = "".join(f" {name} {row[f'Loss/{name}']:.3g}" for name in ("r1", "r2", "gp") if row[f"Loss/{name}"])
    memory = row.get("Resources/gpu_mem_peak_gb", row["Resources/cpu_mem_gb"])
    return " | ".join(
        [
            f"kimg {images / 1000:.1f}/{total_images / 1000:g} {images / total_images:6.1%}",
            f"{_duration(minutes * 60)} eta {_duration(left_sec)}",
            f"{row['Perf/sec_per_kimg']:.3g} s/kimg {row['Perf/img_per_sec']:.0f} img/s",
            f"D {row['Loss/D']:.3f} G {row['Loss/G']:.3f}{penalty}",
            f"gap {row['Logits/gap']:.2f} acc {row['Logits/acc']:.2f}",
            f"data {row['Perf/data_wait_pct']:.0f}% mem {memory:.1f}G",
        ]
    )


def evaluation_line(row: dict[str, float | None], is_best: bool) -> str:
    """An evaluation for a person."""
    values = {name.removeprefix("Metrics/"): value for name, value in row.items() if name.startswith("Metrics/")}
    told = "  ".join(f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in values.items())
    spent = f"{row['Perf/eval_sec']:.1f} s, {row['Perf/eval_pct']:.1f}% of the time so far"
    return f"kimg {row['Progress/kimg']:.1f} evaluated ({spent}): {told}{', the best so far' if is_best else ''}"


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m {int(seconds) % 60:02d}s"
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes // 1440}d {minutes // 60 % 24:02d}h"


class WandbRun:
    """A W&B run that cannot hurt: after its first failure it is silent."""

    def __init__(self, run: object) -> None:
        self._run = run

    def log(self, images: int, values: dict[str, float], grids: dict[str, np.ndarray]) -> None:
        def send() -> None:
            import wandb

            with tempfile.TemporaryDirectory() as folder:  # of files that the client copies while it logs
                media = {}
                for i, (name, pixels) in enumerate(grids.items()):
                    # Files, because the client takes up to a second to make a PNG of a grid, and rescales no floats.
                    Image.fromarray(pixels).save(f"{folder}/{i}.jpg", quality=92, subsampling=0)
                    media[name] = wandb.Image(f"{folder}/{i}.jpg", caption=f"{images / 1000:g} kimg")
                self._run.log({**values, **media}, step=images, commit=True)

        self._fenced("log", send)

    def alert(self, title: str, text: str) -> None:
        self._fenced("alert", lambda: self._run.alert(title, text))

    def finish(self, exit_code: int, summary: dict[str, object]) -> None:
        def end() -> None:
            self._run.summary.update(summary)
            if exit_code == stop.EXIT_CODES["preempted"]:
                self._run.mark_preempting()
            self._run.finish(exit_code=exit_code)

        self._fenced("finish", end)

    def _fenced(self, what: str, function: Callable[[], None]) -> None:
        if self._run is None:
            return
        try:
            function()
        except Exception as error:  # the client raises of every kind when its side process or the disk is gone
            self._run = None
            log.warning(f"wandb: {what} failed ({_short(error)}); going on without it")


def start_wandb(
    settings: Wandb, folder: RunFolder, config: dict, run_id: str, on_stop: Callable[[], None]
) -> WandbRun | None:
    """Start W&B in the mode that the settings, the environment and the network allow; None where it cannot be.

    Never asks, never raises, and waits for a server for seconds only. WANDB_MODE in the environment wins.

    Args:
        on_stop: Called when somebody presses "stop run" on the web page.
    """
    asked = os.environ.get("WANDB_MODE", "")
    mode, reason = asked or settings.mode, ""
    if mode == "disabled":
        return None
    try:
        import wandb

        if mode == "auto":
            mode, reason = ("online", "") if _has_key(wandb) else ("offline", " (no API key)")
        try:
            run = _init(wandb, settings, folder, config, run_id, None if asked else mode, on_stop)
        except Exception as error:
            if mode != "online":
                raise
            mode, reason = "offline", f" ({_short(error)})"
            wandb.teardown()
            run = _init(wandb, settings, folder, config, run_id, mode, on_stop)
    except Exception as error:  # see WandbRun._fenced
        log.warning(f"wandb: could not start ({_short(error)}); metrics go to metrics.jsonl alone")
        return None
    where = Path(run.dir).parent
    offline = f"{mode}{reason}. View: wandb leet {where} · Upload later: wandb sync {where}"
    log.info(f"wandb: {run.url if mode == 'online' else offline}")
    return WandbRun(run)


def _has_key(wandb: ModuleType) -> bool:
    """Whether there is an API key; neither asks for one nor waits for the server to check it."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # a malformed key raises, and means the same
        return False


def _init(
    wandb: ModuleType,
    settings: Wandb,
    folder: RunFolder,
    config: dict,
    run_id: str,
    mode: str | None,
    on_stop: Callable[[], None],
) -> object:
    wanted = {
        "x_transaction_log_flush_interval": 1,  # a killed run loses a second of its record instead of fifteen
        "init_timeout": 20,
        "finish_timeout": 120,
        "stop_fn": on_stop,  # else the web page's button raises KeyboardInterrupt in the middle of a step
        "x_stats_track_process_tree": True,
        "silent": True,
    }
    known = wandb.Settings.model_fields  # names that begin with x_ come and go
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(name, str(folder.path / "wandb"))
    words, sys.argv = sys.argv, [public_text(word) for word in sys.argv]  # which the client sends
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
            settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in known}),
        )
    finally:
        sys.argv = words
    run.define_metric("Progress/kimg", hidden=True)
    run.define_metric("*", step_metric="Progress/kimg")
    return run


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
