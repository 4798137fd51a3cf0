"""One line of metrics per tick, and the warnings that go with it."""

import logging

from torch import nn

from distgan.config.batch_plan import BatchPlan
from distgan.config.schema import Config
from distgan.distributed.process_group import World
from distgan.tracking.system_metrics import SystemMetrics
from distgan.tracking.tracker import Tracker
from distgan.training import ema
from distgan.training.checkpointer import TrainState
from distgan.training.gan_step import GanStep
from distgan.training.schedulers import Schedulers
from distgan.training.timing import PhaseTimer

log = logging.getLogger("distgan")

POOR, POOR_LINES = 0.05, 5  # so little diversity, in so many lines in a row, is reported


class Ticker:
    """Gathers the metrics of a tick on all ranks."""

    def __init__(
        self,
        config: Config,
        world: World,
        batch_plan: BatchPlan,
        step: GanStep,
        schedulers: Schedulers,
        G_ema: nn.Module,
        dataset_size: int,
    ) -> None:
        self._config, self._world, self._batch_plan = config, world, batch_plan
        self._step, self._schedulers, self._G_ema, self._dataset_size = step, schedulers, G_ema, dataset_size
        self._system = SystemMetrics(world) if config.run.log_system_metrics else None
        self._poor_lines = 0  # in a row, in which G's images hardly differ

    def row(
        self, state: TrainState, timer: PhaseTimer, tracker: Tracker, ema_decay: float, num_skipped: int, *, keep: bool
    ) -> dict[str, float]:
        """Return the line of metrics since the last one, the same on every rank. With `keep`, the next one covers it
        too."""
        if num_skipped:
            log.warning(
                f"steps skipped, since loss or gradient were not finite: {state.num_skipped + num_skipped} of at most "
                f"{self._config.train.nan_limit}"
            )
        row = self._step.stats.flush(self._schedulers.penalties(state.images), keep)
        speed, slow_rank = timer.interval(state.images)
        if slow_rank:
            log.warning(slow_rank)
        row |= {
            "Progress/epoch": state.images / self._dataset_size,
            "Progress/d_steps": state.images // self._batch_plan.batch,
            "Progress/g_steps": state.iterations,
            "Progress/ema_beta": ema_decay,
            "EMA/rel_distance": ema.distance(self._G_ema, self._step.G),
            **self._schedulers.row(state.images),
            "Diversity/fake_over_real": self._diversity(tracker),
            "Optim/rollbacks": state.num_rollbacks,
            "Data/replaced": sum(self._world.all_gather_object(state.num_replaced)),
            **speed,
            **(self._system.row() if self._system is not None else {}),
        }
        if not keep:
            state.num_skipped += num_skipped
            state.num_replaced = 0
        return row

    def _diversity(self, tracker: Tracker) -> float:
        diversity = self._step.diversity()
        self._poor_lines = self._poor_lines + 1 if diversity < POOR else 0
        if self._poor_lines == POOR_LINES:
            tracker.alert(
                "Mode collapse?",
                f"the generator's images differ {diversity:.0%} as much as real ones, for {POOR_LINES} lines of "
                "metrics now: try model.minibatch_layer=stddev, a larger loss.r1, augmentation, or balance.adapt=d_lr",
            )
        return diversity
