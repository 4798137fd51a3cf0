"""The training loop."""

import copy
import faulthandler
import logging
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from distgan.config.batch_plan import BatchPlan
from distgan.config.schema import Config
from distgan.config.validate import warnings
from distgan.data import pixels
from distgan.data.dataset import RankInfo
from distgan.data.loader import Stream
from distgan.data.sample_log import SampleLog
from distgan.distributed import preemption
from distgan.distributed.process_group import World
from distgan.distributed.watchdog import Watchdog
from distgan.errors import DataError, DivergedError, MachineError, StopReason
from distgan.evaluation.measure import StopRequested
from distgan.evaluation.periodic import PeriodicEvaluation
from distgan.storage import checkpoint_folder
from distgan.storage.printable import public_line, show
from distgan.storage.run_dir import RunDir
from distgan.tracking.console import duration
from distgan.tracking.tracker import Tracker
from distgan.training import ema, factory, recovery
from distgan.training.checkpointer import Checkpointer
from distgan.training.gan_step import GanStep
from distgan.training.sample_grids import SampleGrids
from distgan.training.schedulers import OptimizerRates, Schedulers
from distgan.training.step_inputs import LatentSampler, StepBatch
from distgan.training.tick import Ticker
from distgan.training.timing import D_STEP, G_STEP, PhaseTimer

log = logging.getLogger("distgan")

EARLY = 20  # iterations after which the log says how fast the run is
SLOW_SEC = 3  # where the first iteration takes longer, the log says so at once
POLL_SEC = 0.5  # how often ranks agree on whether to stop


class Trainer:
    """The objects of a run, and its loop.

    Args:
        build_nets: Builds G and D from the config and the number of classes. Networks of no family are possible too.
        on_phase: Called with the name of each phase of the loop when it begins.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        batch_plan: BatchPlan,
        folder: RunDir,
        build_nets: Callable[[Config, int], tuple[nn.Module, nn.Module]] = factory.build_nets,
        on_phase: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.config, self.world, self.batch_plan, self.folder = config, world, batch_plan, folder
        self._on_phase, self._tick_images = on_phase, config.train.tick or max(1000, 32 * batch_plan.batch)

        self.dataset = factory.open_dataset(config, RankInfo(world.rank, world.size, world.all_gather_object))
        self.num_classes = self.dataset.num_classes
        self.G, self.D = build_nets(config, self.num_classes)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False).to(world.device)
        self.schedulers = Schedulers(config, world)
        options = factory.step_options(config, batch_plan)
        self.step = GanStep(world, self.G, self.D, options, on_logits=self.schedulers.observe)
        self.opt_G = factory.build_optimizer(config.optim.G, self.G)
        self.opt_D = factory.build_optimizer(config.optim.D, self.D)
        self.checkpointer = Checkpointer(
            config,
            world,
            batch_plan.micro_batch,
            factory.choose_layout(config, self.dataset),
            self.dataset,
            {"G": self.G, "D": self.D, "G_ema": self.G_ema},
            {"G": self.opt_G, "D": self.opt_D},
            self.step.stats,
            self.schedulers,
        )
        self.state = self.checkpointer.state
        self.evaluation = PeriodicEvaluation(config, world, self.dataset, folder) if config.eval.every else None
        self.ema_decay = 0.0
        self._poll_every = self._steps_to_poll = 1
        self._copied: torch.cuda.Event | None = None

    def train(self) -> StopReason:
        """Train until done or asked to stop. Returns the reason."""
        self.resume()
        if self._is_done() and not self._evaluation_pending():
            log.info(f"{self.folder.path} is finished at {self.state.images} images: nothing to do")
            return StopReason.FINISHED
        self._describe()
        self.setup()
        try:
            self._describe_pixels()
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
        return reason

    def train_iteration(self) -> StopReason:
        """Run the D steps, the G step and all that is due after them. Returns why to stop now, if at all."""
        before = self.state.images
        for _ in range(self.schedulers.num_d_steps()):
            batch = self.next_batch()
            self._d_step(batch)
            self.state.images += self.batch_plan.batch
            self.schedulers.update(self.state.images - self.batch_plan.batch, self.state.images)
        # In the G step, and for the average, schedules stand where the iteration began (as in StyleGAN2 and R3GAN).
        self._g_step(batch, before)
        self._average_weights(before)
        self.state.iterations += 1
        self.tracker.update_progress(self.state.images)
        return self._run_what_is_due(before)

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
            self.world.average_batch_norm_stats(self.G, self.D)
            ema.copy_buffers(self.G_ema, self.G)
        if sampling:
            self.tracker.log_restoration(images, self._log_samples())
        # Neither samples nor checkpoints cut a line of metrics short. The line of a run that ends before one is due
        # covers what there is, and leaves it to the next one too, in case the run is made longer.
        is_due = self._passed(self._tick_images, before)
        if is_due or is_finished:
            self._tick(keep=not is_due)
        elif sampling or evaluating:
            self.tracker.flush_images(images)
        if self.state.iterations == EARLY:
            self._report_pace()
        if saving:
            self._save(is_best)
        return reason

    # Setting up and closing.

    def resume(self) -> None:
        """Become what the last checkpoint holds, if there is one."""
        model, data = self.config.model, self.config.data
        self.step.warm_up_ddp_buckets(self.batch_plan.micro_batch, data.resolution, model.z_dim, self.num_classes)
        self._logged_images = recovery.resume(self.config, self.world, self.folder, self.checkpointer, self.dataset)
        self._record_best()
        self.timer = PhaseTimer(self.world, self.state.train_sec, self.state.images)

    def setup(self) -> None:
        """Open what a run reads and writes."""
        self.tracker = Tracker(self.config, self.folder, self.world.is_main, self.state.wandb_id, self._logged_images)
        self.sample_grids = SampleGrids(self.config, self.dataset, self.tracker)
        self._ticker = Ticker(
            self.config,
            self.world,
            self.batch_plan,
            self.step,
            self.schedulers,
            self.G_ema,
            self.dataset.num_samples,
        )
        self._write_status("running")
        self.sample_log = self._open_sample_log()
        self.stream = self.open_stream()
        self.watchdog = Watchdog(self.config.run.timeout_sec, self._report_hang)

    def close(self) -> None:
        """Stop the watchdog and the loader."""
        self.watchdog.close()
        self.stream.close()
        self.dataset.source.close()

    def open_stream(self, with_noise: bool = True) -> Stream:
        """Open the batches from where the run stands. Without the noise of steps, they are images and labels alone."""
        sampler = LatentSampler(self.config.train.seed, self.config.model.z_dim, self.state.num_rollbacks)
        draw = sampler if with_noise else lambda positions: ()
        return factory.open_stream(
            self.config, self.world, self.batch_plan, self.dataset, self.checkpointer.layout, self.state.images, draw
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
        if self._copied is not None:
            self._copied.synchronize()  # the stream takes that buffer back now
        self._phase("waiting for data")
        with self.timer.data_wait():
            try:
                batch = next(self.stream)
            except DataError as error:
                raise error.on_rank(self.world.rank) from None
        self.state.num_replaced += batch.num_replaced
        if self.sample_log is not None:
            self.sample_log.write(batch)
        images, degraded = (
            None if pixels is None else torch.from_numpy(pixels).to(self.world.device, non_blocking=True)
            for pixels in (batch.images, batch.degraded)
        )
        if self.world.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()
        labels = self.world.to_device(batch.labels) if self.num_classes else None
        return StepBatch(images, labels, *map(self.world.to_device, batch.drawn), degraded)

    def _d_step(self, batch: StepBatch) -> None:
        self._phase(D_STEP)
        images = self.state.images
        set_rates(self.opt_D, self.schedulers.lr_and_betas("D", images))
        self.step.d_step(batch, self.opt_D, self.schedulers.step_hyperparams(images), self.timer.compute)

    def _g_step(self, batch: StepBatch, images: int) -> None:
        self._phase(G_STEP)
        set_rates(self.opt_G, self.schedulers.lr_and_betas("G", images))
        self.step.g_step(batch, self.opt_G, self.schedulers.step_hyperparams(images))

    def _average_weights(self, before: int) -> None:
        self._phase("averaging weights")
        self.ema_decay = self.schedulers.ema_decay(before, self.state.images - before)
        ema.update(self.G_ema, self.G, self.ema_decay)
        self._phase("between two iterations")

    def _phase(self, name: str) -> None:
        self.watchdog.phase(name)
        self.timer.phase(name)
        self._on_phase(name)

    # When to stop, and what is due.

    def _passed(self, every: int, before: int) -> bool:
        """Return whether a multiple of `every` images is in the iteration that began at `before`."""
        return every > 0 and self.state.images // every > before // every

    def _is_done(self) -> bool:
        return self.state.images >= self.config.train.images or self._is_out_of_time(self.state.train_sec)

    def _is_out_of_time(self, train_sec: float) -> bool:
        return 0 < self.config.train.max_minutes * 60 <= train_sec

    def _stop_reason(self) -> StopReason:
        """Return why to stop now, the same on every rank. Ranks agree on it twice a second, not in each step."""
        reason = preemption.stop_requested()
        if not reason and self._is_out_of_time(self.timer.total_sec):
            reason = StopReason.FINISHED
        if self.world.size == 1:
            return reason
        self._steps_to_poll -= 1
        if self._steps_to_poll > 0:
            return StopReason.NONE
        self._steps_to_poll = self._poll_every
        return StopReason(self.world.all_reduce_max(reason))

    # Evaluations, samples, metrics, checkpoints.

    def _evaluate(self, reason: StopReason) -> tuple[StopReason, bool]:
        """Evaluate the average generator. Returns why to stop then, and whether this is the best one so far.

        A run that is asked to stop meanwhile stops, and repeats the evaluation when it is resumed.
        """
        ema.copy_buffers(self.G_ema, self.G)
        self.world.average_batch_norm_stats(self.G_ema)  # of the copy: training continues with its own
        try:
            row = self.evaluation.run(self.G_ema, self.state.images, self._check_stop_of_evaluation)
        except StopRequested as asked:
            self.state.evaluation_pending = asked.args[0] != StopReason.FINISHED
            return asked.args[0], False
        self.state.evaluation_pending = False
        self.state.eval_sec += row["Perf/eval_sec"]
        row["Perf/eval_pct"] = 100 * self.state.eval_sec / self.timer.total_sec
        is_best = self.world.run_on_main(lambda: self.evaluation.is_best(row))
        self.tracker.log_evaluation(row, is_best)
        return reason, is_best

    def _check_stop_of_evaluation(self) -> None:
        self._phase("evaluating")
        if reason := StopReason(self.world.all_reduce_max(preemption.stop_requested())):
            raise StopRequested(reason)

    def _evaluation_pending(self) -> bool:
        return self.evaluation is not None and self.state.evaluation_pending

    def _run_pending_evaluation(self) -> StopReason:
        """Run the evaluation that a stop interrupted. Returns why to stop then."""
        reason, is_best = self._evaluate(StopReason.FINISHED if self._is_done() else StopReason.NONE)
        self._save(is_best)
        return reason

    def _log_first_samples(self) -> None:
        if self.world.is_main:
            self._phase("drawing samples")
            self.sample_grids.log_reals()
            if self.config.sample.every:
                self.sample_grids.log_fakes(self.G_ema, 0)
            self.tracker.flush_images(0)

    def _log_samples(self) -> dict[str, float]:
        """Draw the generator's current images. Returns their metrics."""
        self._phase("drawing samples")
        if self.world.is_main:
            images = self.state.images
            self.sample_grids.log_fakes(self.G_ema, images)
            self.sample_grids.log_diagnostics(self.G, self.schedulers.augment_p(images), images)
            self.sample_grids.log_worst_reals(self.G, self.D, *self.step.last_scores())
        return self.sample_grids.measure(self.G_ema, self.world)

    def _tick(self, keep: bool) -> None:
        """Log one line of metrics. With `keep`, the next one covers it too."""
        self._phase("gathering metrics")
        row = self._ticker.row(self.state, self.timer, self.tracker, self.ema_decay, self._check_skipped(), keep=keep)
        steps_per_sec = row["Perf/img_per_sec"] / self.batch_plan.batch  # the same on every rank
        self._poll_every = max(1, min(1000, int(POLL_SEC * steps_per_sec)))
        self._steps_to_poll = min(self._steps_to_poll, self._poll_every)  # a line of metrics delays no poll
        self._report_corrupt()
        self.tracker.log_metrics(self.state.images, row)
        self._write_status("running")

    def _check_skipped(self) -> int:
        return recovery.check_skipped(self.config, self.checkpointer, *self.step.stats.skipped())

    def _report_corrupt(self) -> None:
        """Log the corrupt samples and the warnings of the stream since the last call."""
        corrupt = [sample for samples in self.world.all_gather_object(self.stream.pop_corrupt()) for sample in samples]
        for sample in self.folder.record_corrupt(corrupt) if self.world.is_main else ():
            log.warning("corrupt sample {key!r} in {shard}: {reason}; another takes its place".format(**sample))
        for line in self.stream.pop_warnings():
            log.warning(line)

    def _save(self, is_best: bool = False) -> None:
        self._phase("writing a checkpoint")
        self._check_skipped()
        if self.sample_log is not None:
            self.sample_log.flush()
        self._report_corrupt()
        self.state.train_sec = self.timer.total_sec
        path = self.checkpointer.save(self.folder.checkpoints)
        self._record_best()
        self.tracker.log_checkpoint(path, self.state.images, is_best)

    def _record_best(self) -> None:
        if self.evaluation is not None:
            self.world.run_on_main(self.evaluation.record_best)

    def _roll_back(self, error: DivergedError) -> None:
        """Return to the newest checkpoint, with other noise; or raise where the config does not allow it."""
        if not recovery.may_roll_back(self.config, self.checkpointer):
            raise DivergedError(f"{error}. {recovery.hint(self.config, self.folder.checkpoints)}") from error
        self.tracker.alert("Not finite", f"{error}")
        self._phase("rolling back to a checkpoint")
        train_sec = self.timer.total_sec
        self.stream.close()
        if self.sample_log is not None:
            self.sample_log.close()
        self.tracker.logged_images = recovery.roll_back(self.config, self.world, self.folder, self.checkpointer)
        self.timer = PhaseTimer(self.world, train_sec, self.state.images)
        self.sample_log = self._open_sample_log()
        self.stream = self.open_stream()

    # What the log and status.json say.

    def _write_status(self, state: str, **values: object) -> None:
        if self.world.is_main:
            total = self.config.train.images
            self.folder.write_status(
                state, images=self.state.images, total_images=total, world=self.world.size, **values
            )

    def _describe(self) -> None:
        layout = self.checkpointer.layout
        for line in factory.describe(self.config, self.batch_plan, self.dataset, layout, self.G, self.D):
            log.info(line)
        if self.world.is_main:
            for line in warnings(self.config, self.batch_plan):
                log.warning(f"warning: {line}")

    def _describe_pixels(self) -> None:
        """Report what becomes of the images' pixels; a few are read, so a server that hangs is noticed here too."""
        self._phase("waiting for data" if self.world.is_main else "waiting for rank 0 to check images")
        data = self.config.data
        lines, warned = self.world.run_on_main(lambda: pixels.report(self.dataset, data.crop, data.max_pixels))
        for line in lines:
            log.info(line)
        for line in warned if self.world.is_main else ():
            log.warning(f"warning: {line}")

    def _report_first_iteration(self, before: int, seconds: float) -> None:
        """Log what to expect, where the first iteration of this start is slow."""
        if seconds > SLOW_SEC:
            num = self.state.images - before
            left_sec = (self.config.train.images - self.state.images) / num * seconds
            on_cpu = "; on a CPU, start with one of configs/*-small.yaml" if self.world.device.type == "cpu" else ""
            log.info(
                f"the first {num} images took {seconds:.0f} s: at that pace, all take {duration(left_sec)}{on_cpu}"
            )

    def _report_pace(self) -> None:
        """Log the speed before the first line of metrics; a run in which nothing is finite ends here."""
        self._check_skipped()
        speed = self.state.images / (self.timer.total_sec - self.state.eval_sec)
        left = duration((self.config.train.images - self.state.images) / speed)
        log.info(
            f"{EARLY} iterations, {self.state.images} images: {speed:.3g} images/s, {left} left; a line of metrics "
            f"comes every {self._tick_images} images"
        )

    def _report_hang(self, error: MachineError) -> None:
        """Report on the console first, then in files, which a disk that hangs may prevent."""
        rank = self.world.rank
        show(f"distgan train: rank {rank}: {public_line(str(error))}", file=sys.stderr)
        self.folder.record_failure(error.on_rank(rank), rank, self.world.size)
        with open(self.folder.path / "logs" / f"rank_{rank:05d}.stacks.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)


def set_rates(optimizer: torch.optim.Optimizer, rates: OptimizerRates) -> None:
    """Set an optimizer's learning rate, and its betas if it has them."""
    for group in optimizer.param_groups:
        group["lr"] = rates.lr
        if "betas" in group:
            group["betas"] = rates.betas
