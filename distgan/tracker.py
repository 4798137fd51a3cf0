"""Where a run's numbers and pictures go: the console, log.txt, metrics.jsonl and W&B. The only door to wandb.

metrics.jsonl is the truth. W&B is fenced: whatever happens to it, one line says so and training goes on.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from distgan.config import Wandb
from distgan.runfolder import RunFolder

log = logging.getLogger("distgan")


def start_logging(folder: Path | None, rank: int) -> None:
    """Rank 0 speaks on the console and in log.txt; the others, of warnings only, in logs/rank_<r>.txt."""
    log.handlers.clear()
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)] if rank == 0 else []
    if folder is not None:
        path = folder / "log.txt" if rank == 0 else folder / "logs" / f"rank_{rank:05d}.txt"
        handlers.append(logging.FileHandler(path, delay=rank > 0))
    for handler in handlers or [logging.NullHandler()]:
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


class Tracker:
    """Rank 0's record of a run.

    Args:
        wandb: A started WandbRun, or None.
        logged_images: The last image count that W&B was sent; earlier rows of a resumed run are equal, and not sent.
    """

    def __init__(self, folder: RunFolder, wandb: "WandbRun | None", logged_images: int = -1):
        self._folder, self._wandb, self._logged_images = folder, wandb, logged_images

    def row(self, images: int, values: dict[str, float], pictures: dict[str, np.ndarray], total_images: int) -> None:
        """All that is due at this moment, as one line each."""
        rounded = {"Progress/images": images, "Progress/kimg": images / 1000}
        rounded |= {name: float(f"{value:.6g}") for name, value in values.items()}
        self._folder.add_metrics(rounded)
        log.info(console_line(rounded, total_images))
        if self._wandb is not None and images > self._logged_images:
            self._wandb.log(images, rounded, pictures)

    def finish(self, exit_code: int, summary: dict[str, object]) -> None:
        if self._wandb is not None:
            self._wandb.finish(exit_code, summary)


def console_line(row: dict[str, float], total_images: int) -> str:
    """A tick for a person: progress, speed, losses, D's verdicts, where time and memory went."""
    images = row["Progress/images"]
    left = (total_images - images) / 1000 * row["Perf/sec_per_kimg"]
    penalty = "".join(f" {name} {row[f'Loss/{name}']:.3g}" for name in ("r1", "r2", "gp") if row[f"Loss/{name}"])
    memory = row.get("Resources/gpu_mem_peak_gb", row["Resources/cpu_mem_gb"])
    return " | ".join(
        [
            f"kimg {images / 1000:.1f}/{total_images / 1000:g} {images / total_images:6.1%}",
            f"{_duration(row['Perf/total_hours'] * 3600)} eta {_duration(left)}",
            f"{row['Perf/sec_per_kimg']:.3g} s/kimg {row['Perf/img_per_sec']:.0f} img/s",
            f"D {row['Loss/D']:.3f} G {row['Loss/G']:.3f}{penalty}",
            f"gap {row['Logits/gap']:.2f} acc {row['Logits/acc']:.2f}",
            f"data {row['Perf/data_wait_pct']:.0f}% mem {memory:.1f}G",
        ]
    )


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m {int(seconds) % 60:02d}s"
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes // 1440}d {minutes // 60 % 24:02d}h"


class WandbRun:
    """A W&B run that cannot hurt: after its first failure it is silent."""

    def __init__(self, run: object, about: str):
        self._run, self.about = run, about

    @property
    def id(self) -> str:
        return self._run.id

    def log(self, images: int, values: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        def send() -> None:
            import wandb

            with tempfile.TemporaryDirectory() as folder:  # of files that the client copies while it logs
                media = {}
                for i, (name, pixels) in enumerate(pictures.items()):
                    # Uint8, since the client no longer rescales floats; a fine JPEG, since a PNG of a grid takes it
                    # up to a second.
                    Image.fromarray(pixels).save(f"{folder}/{i}.jpg", quality=92, subsampling=0)
                    media[name] = wandb.Image(f"{folder}/{i}.jpg", caption=f"{images / 1000:g} kimg")
                self._run.log({**values, **media}, step=images, commit=True)

        self._fenced("log", send)

    def finish(self, exit_code: int, summary: dict[str, object]) -> None:
        def end() -> None:
            self._run.summary.update(summary)
            if exit_code == 75:
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
            log.warning("wandb: %s failed (%s: %s); going on without it", what, type(error).__name__, _short(error))


def start_wandb(
    settings: Wandb, folder: RunFolder, config: dict, run_id: str, on_stop: Callable[[], None]
) -> WandbRun | None:
    """Start W&B on rank 0, in the mode that the settings, the environment and the network allow.

    Never asks, never raises, and waits for a server for seconds only. WANDB_MODE in the environment wins.

    Args:
        run_id: The id of the run that is taken up again, or of the new one.
        on_stop: Called when somebody presses "stop run" on the web page.
    """
    asked = os.environ.get("WANDB_MODE", "")
    mode = asked or settings.mode
    if mode in ("disabled", "dryrun"):
        return None
    try:
        import wandb
    except ImportError as error:
        log.warning("wandb: not importable (%s); metrics go to metrics.jsonl alone", error)
        return None
    try:
        reason = ""
        if mode == "auto":
            mode, reason = ("online", "") if _has_key(wandb) else ("offline", " (no API key)")
        try:
            run = _init(wandb, settings, folder, config, run_id, "" if asked else mode, on_stop)
        except Exception as error:
            if mode != "online":
                raise
            mode, reason = "offline", f" ({type(error).__name__}: {_short(error)})"
            wandb.teardown()
            run = _init(wandb, settings, folder, config, run_id, mode, on_stop)
    except Exception as error:  # see WandbRun._fenced
        log.warning(
            "wandb: could not start (%s: %s); metrics go to metrics.jsonl alone", type(error).__name__, _short(error)
        )
        return None
    if mode == "online":
        about = f"wandb: {run.url}"
    else:
        where = Path(run.dir).parent
        about = f"wandb: {mode}{reason}. View: wandb leet {where} · Upload later: wandb sync {where}"
    log.info(about)
    return WandbRun(run, about)


def _has_key(wandb) -> bool:
    """Whether there is an API key; neither asks for one nor waits for the server to check it."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # a malformed key raises, and means the same
        return False


def _init(wandb, settings: Wandb, folder: RunFolder, config: dict, run_id: str, mode: str, on_stop):
    wanted = {
        "x_transaction_log_flush_interval": 1,  # a killed run loses a second of its record instead of fifteen
        "init_timeout": 20,
        "finish_timeout": 120,
        "stop_fn": on_stop,  # else the web page's button raises KeyboardInterrupt in the middle of a step
        "x_stats_track_process_tree": True,
        "silent": True,
    }
    known = getattr(wandb.Settings, "model_fields", wanted)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(name, str(folder.path / "wandb"))
    run = wandb.init(
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
        **({"mode": mode} if mode else {}),
    )
    run.define_metric("Progress/kimg", hidden=True)
    run.define_metric("*", step_metric="Progress/kimg")
    return run


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
