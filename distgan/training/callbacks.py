"""What a program does of its own during a run: methods that the trainer calls."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from distgan.config.schema import Config
from distgan.distributed.process_group import World
from distgan.errors import StopReason
from distgan.storage.run_dir import RunDir
from distgan.training.learner import Learner, TrainState


class Run(Protocol):
    """What callbacks are given: the trainer, of which these are meant for them."""

    config: Config
    world: World
    folder: RunDir
    learner: Learner
    state: TrainState


class Callback:
    """Methods that a run calls, on every rank and in the main thread: override those that you need.

        class StopWhenGood(distgan.Callback):
            def on_evaluate(self, trainer, values):
                return values["Metrics/fd_efficientnet_lite0_10k"] < 5

        distgan.train("faces.yaml", callbacks=[StopWhenGood()])

    Where `on_step`, `on_tick`, `on_sample`, `on_evaluate` or `on_checkpoint` return True on any rank, all ranks stop
    after the next step, with a checkpoint, as finished. An exception ends the run as failed, as one of its own does. A
    callback that hangs is ended as a step is (`run.timeout_sec`).

    `trainer.learner` has the networks and optimizers, `trainer.state` the counts, `trainer.config` the settings. A
    callback that changes them, or draws from torch's random numbers, makes another run of this one: an exact resume is
    then its own task.
    """

    def on_start(self, trainer: Run) -> None:
        """Run before the first step of this start, with the state that it resumes from."""

    def on_step(self, trainer: Run) -> bool | None:
        """Run after each iteration: D steps, a G step, and what was due."""

    def on_tick(self, trainer: Run, metrics: Mapping[str, float]) -> bool | None:
        """Run after each line of metrics, by log key; the same on every rank."""

    def on_sample(self, trainer: Run) -> bool | None:
        """Run after sample grids were drawn."""

    def on_evaluate(self, trainer: Run, values: Mapping[str, float | None]) -> bool | None:
        """Run after each evaluation, with its line by log key; None: a value that is not finite."""

    def on_checkpoint(self, trainer: Run, path: Path) -> bool | None:
        """Run after a checkpoint was written."""

    def on_stop(self, trainer: Run, reason: StopReason) -> None:
        """Run at the end of a start that ended well: finished, preempted or interrupted; all is saved."""


class Callbacks:
    """Calls the callbacks of a run, and remembers whether one asked to stop."""

    def __init__(self, callbacks: Sequence[Callback], on_phase: Callable[[str], None]) -> None:
        self._callbacks, self._on_phase = callbacks, on_phase
        self.stop_requested = False

    def __call__(self, name: str, *arguments: object) -> None:
        """Call a method of each callback, in their order."""
        for callback in self._callbacks:
            self._on_phase(f"in {type(callback).__name__}.{name}")
            if getattr(callback, name)(*arguments):
                self.stop_requested = True
