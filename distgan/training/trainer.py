"""The training loop."""

import faulthandler
import logging
import sys
import time
from collections.abc import Callable, Sequence

from distgan.config.decode_options import decode_options
from distgan.data import pixels
from distgan.data.loader import Stream
from distgan.data.sample_log import SampleLog
from distgan.distributed import preemption
from distgan.distributed.device_copy import DeviceCopy
from distgan.distributed.stop_agreement import StopAgreement
from distgan.distributed.watchdog import Watchdog
from distgan.errors import DataError, DivergedError, MachineError, StopReason
from distgan.evaluation.measure import StopRequested
from distgan.evaluation.periodic import PeriodicEvaluation
from distgan.storage import checkpoint_folder
from distgan.storage.printable import public_line, show
from distgan.storage.run_dir import RunDir
from distgan.tracking.tracker import Tracker
from distgan.training import checkpointer, ema, factory, pace, recovery
from distgan.training.callbacks import Callback, Callbacks
from distgan.training.learner import Learner
from distgan.training.sample_grids import SampleGrids
from distgan.training.step_inputs import LatentSampler, StepBatch
from distgan.training.tick import Ticker
from distgan.training.timing import D_STEP, G_STEP, PhaseTimer

log = logging.getLogger("distgan")


class Trainer:
    """Runs the training of a learner: what it reads and writes, and the loop.

    Args:
        logged_images: The image count of the last line of metrics that earlier starts left.
        on_phase: Called with the name of each phase of the loop when it begins.
        callbacks: What the caller's program does in between.
    """

    def __init__(
        self,
        learner: Learner,
        folder: RunDir,
        logged_images: int,
        on_phase: Callable[[str], None] = lambda name: None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        config, world = learner.config, learner.world
        self.learner, self.config, self.world, self.folder = learner, config, world, folder
        self.batch_plan, self.dataset, self.state = learner.batch_plan, learner.dataset, learner.state
        self._on_phase, self._tick_images = on_phase, config.train.tick or max(1000, 32 * self.batch_plan.batch)
        self.ema_decay, self._call = 0.0, Callbacks(callbacks, self._phase)
        self._stop_agreement = StopAgreement(world)
        self._copy_to_device = DeviceCopy(world.device)

        self.evaluation = (
            PeriodicEvaluation(config, world, self.dataset, folder, learner.condition_examples)
            if config.eval.every
            else None
        )
        self._record_best()
        self.timer = PhaseTimer(world, self.state.train_sec, self.state.images)
        self.tracker = Tracker(config, folder, world.is_main, self.state.wandb_id, logged_images)
        self.sample_grids = SampleGrids(config, self.dataset, self.tracker, learner.condition_examples)
        self._ticker = Ticker(learner)
        self._write_status("running")
        self.sample_log = self._open_sample_log()
        self.stream = self.open_stream()
        self.watchdog = Watchdog(config.run.timeout_sec, self._report_hang)

    def train(self) -> StopReason:
        """Train until done or asked to stop. Returns the reason."""
        try:
            self._describe_pixels()
            self._call("on_start", self)
            if self.state.images == 0:
                self._log_first_samples()
            reason = self._run_pending_evaluation() if self._evaluation_pending() else StopReason.NONE
            if self.config.train.on_nan == "rollback" and not checkpoint_folder.newest_first(self.folder.checkpoints):
                self._save()  # to have something to go back to
            started, first_images = time.perf_counter(), self.state.images
            while not reason:
                try:
                    before = self.state.images
                    reason = self.train_iteration()
                    if before == first_images and not reason:
                        self._report_first_iteration(before, time.perf_counter() - started)
                except DivergedError as error:  # which all ranks raise together
                    self._roll_back(error)
        except Exception as error:
            self.tracker.fail(error, self.state.images)
            raise
        finally:
            self.close()
        self._finish(reason)
        self._call("on_stop", self, reason)
        return reason

    def train_iteration(self) -> StopReason:
        """Run the D steps, the G step and all that is due after them. Returns why to stop now."""
        before = self.state.images
        for _ in range(self.learner.schedulers.num_d_steps()):
            batch = self.next_batch()
            self._phase(D_STEP)
            self.learner.d_step(batch, self.timer.compute)
        self._phase(G_STEP)
        self.learner.g_step(batch, before)
        self._phase("averaging weights")
        self.ema_decay = self.learner.average_weights(before)
        self._phase("between two iterations")
        self.state.iterations += 1
        self.tracker.update_progress(self.state.images)
        reason = self._run_what_is_due(before)
        self._call("on_step", self)
        return reason

    def _run_what_is_due(self, before: int) -> StopReason:
        """Evaluate, draw samples, log metrics and save, in this order, where an interval ended in this iteration."""
        config, images = self.config, self.state.images
        reason = StopReason.FINISHED if images >= config.train.images else self._stop_reason()
        is_finished = reason == StopReason.FINISHED
        sampling = config.sample.every and (is_finished or self._passed(config.sample.every, before))
        evaluating = self.evaluation is not None and (is_finished or self._passed(config.eval.every, before))
        is_best = False
        if evaluating:
            reason, is_best = self._evaluate(reason)
        saving = self._passed(config.checkpoint.every, before) or is_best or bool(reason)
        if sampling or saving:
            self.world.average_batch_norm_stats(self.learner.G, self.learner.D)
            ema.copy_buffers(self.learner.G_ema, self.learner.G)
        if sampling:
            self.tracker.log_restoration(images, self._log_samples())
            self._call("on_sample", self)
        # Neither samples nor checkpoints cut a line of metrics short. The line of a run that ends before one is due
        # covers what there is, and leaves it to the next one too, in case the run is made longer.
        is_due = self._passed(self._tick_images, before)
        if is_due or is_finished:
            self._tick(keep=not is_due)
        elif sampling or evaluating:
            self.tracker.flush_images(images)
        if self.state.iterations == pace.EARLY:
            self._report_pace()
        if saving:
            self._save(is_best)
        return reason

    # Opening and closing.

    def close(self) -> None:
        """Stop the watchdog and the loader."""
        self.watchdog.close()
        self.stream.close()
        self.dataset.source.close()

    def open_stream(self, with_noise: bool = True) -> Stream:
        """Open the batches from the run's position on. Without the noise of steps, they are images and labels alone."""
        sampler = LatentSampler(self.config.train.seed, self.config.model.z_dim, self.state.num_rollbacks)
        draw = sampler if with_noise else lambda positions: ()
        return factory.open_stream(
            self.config, self.world, self.batch_plan, self.dataset, self.learner.layout, self.state.images, draw
        )

    def _open_sample_log(self) -> SampleLog | None:
        return SampleLog(self.folder.path / "audit", self.world.rank, self.dataset) if self.config.data.audit else None

    def _finish(self, reason: StopReason) -> None:
        """Record how the run ended; the checkpoint is written."""
        state = "finished" if reason == StopReason.FINISHED else "preempted"
        self._write_status(
            state, reason=reason.word, checkpoint=checkpoint_folder.newest_first(self.folder.checkpoints)[0].name
        )
        self.tracker.finish(reason, self.state.images)
        log.info(
            f"{reason.word} at {self.state.images} images after {self.timer.total_sec / 60:.1f} min: {self.folder.path}"
        )

    # The parts of an iteration.

    def next_batch(self) -> StepBatch:
        """Return the next images on the device; on a CPU they share memory with the stream's buffer."""
        self._copy_to_device.wait()  # the stream takes the buffers of the last batch back now
        self._phase("waiting for data")
        with self.timer.data_wait():
            try:
                batch = next(self.stream)
            except DataError as error:
                raise error.on_rank(self.world.rank) from None
        self.state.num_replaced += batch.num_replaced
        if self.sample_log is not None:
            self.sample_log.write(batch)
        drawn_z_d, drawn_z_g, drawn_seeds = batch.drawn
        images, numbers = self._copy_to_device(batch.buffers, [drawn_seeds, batch.given, drawn_z_d, drawn_z_g])
        seeds, labels, z_d, z_g = numbers
        degraded = images[1] if len(images) > 1 else None
        return StepBatch(images[0], labels if self.learner.label_input else None, z_d, z_g, seeds, degraded)

    def _phase(self, name: str) -> None:
        self.watchdog.phase(name)
        self.timer.phase(name)
        self._on_phase(name)

    # When to stop, and what is due.

    def _passed(self, every: int, before: int) -> bool:
        """Return whether a multiple of `every` images is in the iteration that began at `before`."""
        return every > 0 and self.state.images // every > before // every

    def _stop_reason(self) -> StopReason:
        """Return why to stop now, the same on every rank."""
        own = preemption.stop_requested()
        if not own and (self._call.stop_requested or self.learner.is_out_of_time(self.timer.total_sec)):
            own = StopReason.FINISHED
        return self._stop_agreement.reason(own)

    # Evaluations, samples, metrics, checkpoints.

    def _evaluate(self, reason: StopReason) -> tuple[StopReason, bool]:
        """Evaluate the average generator. Returns why to stop then, and whether this is the best one so far.

        A run that is asked to stop meanwhile stops, and repeats the evaluation when it is resumed.
        """
        assert self.evaluation is not None
        evaluation = self.evaluation
        ema.copy_buffers(self.learner.G_ema, self.learner.G)
        self.world.average_batch_norm_stats(self.learner.G_ema)  # of the copy: training continues with its own
        try:
            row = evaluation.run(self.learner.G_ema, self.state.images, self._check_stop_of_evaluation)
        except StopRequested as asked:
            self.state.evaluation_pending = asked.args[0] != StopReason.FINISHED
            return asked.args[0], False
        self.state.evaluation_pending = False
        self.state.eval_sec += row["Perf/eval_sec"] or 0.0
        row["Perf/eval_pct"] = 100 * self.state.eval_sec / self.timer.total_sec
        is_best = self.world.run_on_main(lambda: evaluation.is_best(row))
        self.tracker.log_evaluation(row, is_best)
        self._call("on_evaluate", self, row)
        return reason, is_best

    def _check_stop_of_evaluation(self) -> None:
        self._phase("evaluating")
        if reason := StopReason(self.world.all_reduce_max(preemption.stop_requested())):
            raise StopRequested(reason)

    def _evaluation_pending(self) -> bool:
        return self.evaluation is not None and self.state.evaluation_pending

    def _run_pending_evaluation(self) -> StopReason:
        """Run the evaluation that a stop interrupted. Returns why to stop then."""
        reason, is_best = self._evaluate(StopReason.FINISHED if self.learner.is_done else StopReason.NONE)
        self._save(is_best)
        return reason

    def _log_first_samples(self) -> None:
        if self.world.is_main:
            self._phase("drawing samples")
            self.sample_grids.log_reals()
            if self.config.sample.every:
                self.sample_grids.log_fakes(self.learner.G_ema, 0)
            self.tracker.flush_images(0)

    def _log_samples(self) -> dict[str, float]:
        """Draw the generator's current images. Returns their metrics."""
        self._phase("drawing samples")
        if self.world.is_main:
            learner, images = self.learner, self.state.images
            self.sample_grids.log_fakes(learner.G_ema, images)
            self.sample_grids.log_diagnostics(learner.G, learner.schedulers.augment_p(images), images)
            self.sample_grids.log_worst_reals(learner.G, learner.D, *learner.step.last_scores())
        return self.sample_grids.measure(self.learner.G_ema, self.world)

    def _tick(self, keep: bool) -> None:
        """Log one line of metrics. With `keep`, the next one covers it too."""
        self._phase("gathering metrics")
        row = self._ticker.row(
            self.timer, self.tracker, self.ema_decay, recovery.check_skipped(self.learner), keep=keep
        )
        self._stop_agreement.set_pace(row["Perf/img_per_sec"] / self.batch_plan.batch)
        self._report_corrupt()
        self.tracker.log_metrics(self.state.images, row)
        self._write_status("running")
        self._call("on_tick", self, row)

    def _report_corrupt(self) -> None:
        """Log the corrupt samples and the warnings of the stream since the last call."""
        corrupt = [sample for samples in self.world.all_gather_object(self.stream.pop_corrupt()) for sample in samples]
        for sample in self.folder.record_corrupt(corrupt) if self.world.is_main else ():
            log.warning("corrupt sample {key!r} in {shard}: {reason}; another takes its place".format(**sample))
        for line in self.stream.pop_warnings():
            log.warning(line)

    def _save(self, is_best: bool = False) -> None:
        self._phase("writing a checkpoint")
        recovery.check_skipped(self.learner)
        if self.sample_log is not None:
            self.sample_log.flush()
        self._report_corrupt()
        self.state.train_sec = self.timer.total_sec
        path = checkpointer.save(self.learner, self.folder.checkpoints)
        self._record_best()
        self.tracker.log_checkpoint(path, self.state.images, is_best)
        self._call("on_checkpoint", self, path)

    def _record_best(self) -> None:
        if self.evaluation is not None:
            self.world.run_on_main(self.evaluation.record_best)

    def _roll_back(self, error: DivergedError) -> None:
        """Return to the newest checkpoint, with other noise; or raise where the config does not allow it."""
        if not recovery.may_roll_back(self.learner):
            raise DivergedError(f"{error}. {recovery.hint(self.config, self.folder.checkpoints)}") from error
        self.tracker.alert("Not finite", f"{error}")
        self._phase("rolling back to a checkpoint")
        train_sec = self.timer.total_sec
        self.stream.close()
        if self.sample_log is not None:
            self.sample_log.close()
        self.tracker.logged_images = recovery.roll_back(self.learner, self.folder)
        self.timer = PhaseTimer(self.world, train_sec, self.state.images)
        self.sample_log = self._open_sample_log()
        self.stream = self.open_stream()

    # What the log and status.json say.

    def _write_status(self, state: str, **values: object) -> None:
        if self.world.is_main:
            self.folder.write_status(state, **self.learner.progress(), **values)

    def _describe_pixels(self) -> None:
        """Report what becomes of the images' pixels; a few are read, so a server that hangs is noticed here too."""
        self._phase("waiting for data" if self.world.is_main else "waiting for rank 0 to check images")
        options = decode_options(self.config.data)
        lines, warned = self.world.run_on_main(lambda: pixels.report(self.dataset, options))
        for line in lines:
            log.info(line)
        for line in warned if self.world.is_main else ():
            log.warning(f"warning: {line}")

    def _report_first_iteration(self, before: int, seconds: float) -> None:
        left, on_cpu = self.config.train.images - self.state.images, self.world.device.type == "cpu"
        if line := pace.first_iteration(self.state.images - before, seconds, left, on_cpu=on_cpu):
            log.info(line)

    def _report_pace(self) -> None:
        """Log the speed before the first line of metrics; a run in which nothing is finite ends here."""
        recovery.check_skipped(self.learner)
        train_sec, left = self.timer.total_sec - self.state.eval_sec, self.config.train.images - self.state.images
        log.info(pace.early(self.state.images, train_sec, left, self._tick_images))

    def _report_hang(self, error: MachineError) -> None:
        """Report on the console first, then in files, which a disk that hangs may prevent."""
        rank = self.world.rank
        show(f"distgan train: rank {rank}: {public_line(str(error))}", file=sys.stderr)
        self.folder.record_failure(error.on_rank(rank), rank, self.world.size)
        with open(self.folder.path / "logs" / f"rank_{rank:05d}.stacks.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
