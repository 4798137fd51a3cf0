"""One line of metrics per tick, and the warnings that go with it."""

import logging

from distgan.tracking.system_metrics import SystemMetrics
from distgan.tracking.tracker import Tracker
from distgan.training import ema
from distgan.training.learner import Learner
from distgan.training.timing import PhaseTimer

log = logging.getLogger("distgan")

POOR, POOR_LINES = 0.05, 5  # diversity below this, in this number of lines in a row, is reported


class Ticker:
    """Gathers the metrics of a tick on all ranks."""

    def __init__(self, learner: Learner) -> None:
        self._learner, self._config, self._world = learner, learner.config, learner.world
        self._system = SystemMetrics(self._world) if self._config.run.log_system_metrics else None
        self._poor_lines = 0  # in a row, in which G's images hardly differ

    def row(
        self, timer: PhaseTimer, tracker: Tracker, ema_decay: float, num_skipped: int, *, keep: bool
    ) -> dict[str, float]:
        """Return the line of metrics since the last one, the same on every rank. With `keep`, the next one covers it
        too."""
        learner, state = self._learner, self._learner.state
        if num_skipped:
            log.warning(
                f"steps skipped, since loss or gradient were not finite: {state.num_skipped + num_skipped} of at most "
                f"{self._config.train.nan_limit}"
            )
        row = learner.step.stats.flush(learner.schedulers.penalties(state.images), keep)
        speed, slow_rank = timer.interval(state.images)
        if slow_rank:
            log.warning(slow_rank)
        row |= {
            "Progress/epoch": state.images / learner.dataset.num_samples,
            "Progress/d_steps": state.images // learner.batch_plan.batch,
            "Progress/g_steps": state.iterations,
            "Progress/ema_beta": ema_decay,
            "EMA/rel_distance": ema.distance(learner.G_ema, learner.step.G),
            **learner.schedulers.row(state.images),
            **({"Styles/path_length": float(learner.step.mean_path_length)} if self._config.loss.path_length else {}),
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
        diversity = self._learner.step.diversity()
        self._poor_lines = self._poor_lines + 1 if diversity < POOR else 0
        if self._poor_lines == POOR_LINES:
            tracker.alert(
                "Mode collapse?",
                f"the generator's images differ {diversity:.0%} as much as real ones, for {POOR_LINES} lines of "
                "metrics now: try model.minibatch_layer=stddev, a larger loss.r1, augmentation, or balance.adapt=d_lr",
            )
        return diversity
