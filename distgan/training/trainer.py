"""A run: built from its config, taken up where it stopped, carried on until it is done or asked to stop."""

import copy
import faulthandler
import logging
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from distgan.config.schema import Config
from distgan.config.validate import BatchPlan, warnings
from distgan.data import pixels
from distgan.data.loader import Stream
from distgan.data.sample_log import Audit
from distgan.distributed import preemption
from distgan.distributed.process_group import World
from distgan.distributed.watchdog import Watch
from distgan.errors import DataError, DivergedError, MachineError
from distgan.evaluation.measure import StopAsked
from distgan.evaluation.periodic import Evaluations
from distgan.storage import checkpoint
from distgan.storage.printable import public_line, show
from distgan.storage.run_dir import RunFolder
from distgan.tracking.console import duration
from distgan.tracking.system_metrics import NodeLoad
from distgan.tracking.tracker import Tracker
from distgan.training import ema, factory
from distgan.training.checkpointer import RunState, difference_lines, differences
from distgan.training.gan_step import DeviceBatch, GanStep, Noise
from distgan.training.sample_grids import Gallery
from distgan.training.schedulers import Controls, Rates
from distgan.training.timing import D_STEP, G_STEP, Stopwatch

log = logging.getLogger("distgan")

EARLY = 20  # iterations after which a person is told that the run is alive, and how fast
SLOW_SEC = 3  # where the first of them takes longer, that is told at once
POLL_SEC = 0.5  # how often ranks agree on whether to stop
POOR, POOR_LINES = 0.05, 5  # so little diversity, in so many lines of metrics in a row, is told
STOP_REASONS = ("", "finished", "preempted", "interrupted")  # where ranks differ, the later one wins


class Trainer:
    """The objects of a run, and its loop.

    Args:
        build_nets: Makes G and D of the config and the number of classes; other networks than a family's fit too.
        on_phase: Told the name of each phase of the loop as it begins.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        spread: BatchPlan,
        folder: RunFolder,
        build_nets: Callable[[Config, int], tuple[nn.Module, nn.Module]] = factory.build_nets,
        on_phase: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.config, self.world, self.spread, self.folder, self._on_phase = config, world, spread, folder, on_phase
        self._tick_images = config.train.tick or max(1000, 32 * spread.batch)

        self.dataset = factory.open_dataset(config, rank=world.rank, world=world.size, gather=world.gather)
        self.num_classes = self.dataset.num_classes
        self.G, self.D = build_nets(config, self.num_classes)
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False).to(world.device)
        self.controls = Controls(config, world)
        self.step = GanStep(
            world,
            self.G,
            self.D,
            config.loss.name,
            passes=spread.passes,
            bf16=config.train.precision == "bf16",
            clip=config.loss.clip,
            smooth=config.loss.smooth,
            matching=config.loss.feature_matching,
            group=config.train.group,
            pipe=config.augment.pipe,
            colour=config.augment.colour,
            flip=config.data.flip,
            restoring=factory.restoring(config),
            observe=self.controls.observe,
            compile=config.train.compile,
            undo_buffers=config.train.on_nan == "skip",
        )
        self.opt_G = factory.build_optimizer(config.optim.G, self.G)
        self.opt_D = factory.build_optimizer(config.optim.D, self.D)
        self.state = RunState(
            config,
            world,
            spread.micro_batch,
            factory.choose_layout(config, self.dataset),
            self.dataset,
            {"G": self.G, "D": self.D, "G_ema": self.G_ema},
            {"G": self.opt_G, "D": self.opt_D},
            self.step.meter,
            self.controls,
        )
        self.now = self.state.now
        self.evaluations = Evaluations(config, world, self.dataset, folder) if config.eval.every else None
        self.ema_decay = 0.0
        self._poor_lines = 0  # in a row, in which G's images hardly differ
        self._poll_every = self._steps_to_poll = 1
        self._copied: torch.cuda.Event | None = None

    def run(self) -> str:
        """Train until done or asked to stop; returns why it ended, a key of `stop.EXIT_CODES`."""
        self.take_up()
        is_done = self.now.images >= self.config.train.images or self._is_out_of_time(self.now.train_sec)
        owes = self.evaluations is not None and self.now.owes_evaluation
        if is_done and not owes:
            log.info(f"{self.folder.path} is finished at {self.now.images} images: nothing to do")
            return "finished"
        self._describe()
        self.open()
        try:
            self._describe_pixels()
            if self.now.images == 0 and self.world.is_main:
                self._phase("drawing samples")
                self.gallery.reals()
                if self.config.sample.every:
                    self.gallery.fakes(self.G_ema, 0)
                self.tracker.show(0)
            reason = self._catch_up("finished" if is_done else "") if owes else ""
            reason = reason or self._loop_with_rollbacks()
        except Exception as error:
            self.tracker.fail(error, self.now.images)
            raise
        finally:
            self.close()
        self._end(reason)
        return reason

    def take_up(self) -> None:
        """Become what the last checkpoint holds, if there is one."""
        model, data = self.config.model, self.config.data
        self.step.settle(self.spread.micro_batch, data.resolution, model.z_dim, self.num_classes)
        self._logged_images = self._resume()
        self.stopwatch = Stopwatch(self.world, self.now.train_sec, self.now.images)
        self._nodes = NodeLoad(self.world) if self.config.run.per_node else None

    def open(self) -> None:
        """Open what a run reads and writes."""
        self.tracker = Tracker(self.config, self.folder, self.world.is_main, self.now.wandb_id, self._logged_images)
        self.gallery = Gallery(self.config, self.dataset, self.tracker)
        self._write_status("running")
        self.audit = self._open_audit()
        self.stream = self.open_stream()
        self.watch = Watch(self.config.run.timeout_sec, self._tell_hang)

    def close(self) -> None:
        self.watch.close()
        self.stream.close()
        self.dataset.source.close()

    def _loop_with_rollbacks(self) -> str:
        train = self.config.train
        if train.on_nan == "rollback" and not checkpoint.newest_first(self.folder.checkpoints):
            self._save()
        while True:
            try:
                reason = self._first_iteration()
                while not reason:
                    reason = self.iterate()
                return reason
            except DivergedError as error:  # which all ranks raise together
                if train.on_nan != "rollback" or self.now.num_rollbacks >= train.nan_limit:
                    raise DivergedError(f"{error}. {self._way_out()}") from error
                self.tracker.alert("Not finite", f"{error}")
                self._roll_back()

    def _first_iteration(self) -> str:
        """Of this start; where it is slow, a person is told what to expect."""
        before, started = self.now.images, time.perf_counter()
        reason = self.iterate()
        seconds, num = time.perf_counter() - started, self.now.images - before
        if seconds > SLOW_SEC and not reason:
            left_sec = (self.config.train.images - self.now.images) / num * seconds
            on_cpu = "; on a CPU, begin with one of configs/*-small.yaml" if self.world.device.type == "cpu" else ""
            log.info(
                f"the first {num} images took {seconds:.0f} s: at that pace, all take {duration(left_sec)}{on_cpu}"
            )
        return reason

    def iterate(self) -> str:
        """D's steps, G's step and all that is due after them. Returns why to stop now, or ""."""
        before = self.now.images
        for _ in range(self.controls.num_d_steps()):
            batch = self.next_batch()
            self._d_step(batch)
            self.now.images += self.spread.batch
            self.controls.update(self.now.images - self.spread.batch, self.now.images)
        # Schedules stand where the iteration began, in G's step and for the average too (as in StyleGAN2 and R3GAN).
        self._g_step(batch, before)
        self._phase("averaging weights")
        self.ema_decay = self.controls.ema_decay(before, self.now.images - before)
        ema.update(self.G_ema, self.G, self.ema_decay)
        self._phase("between two iterations")
        self.now.iterations += 1
        self.tracker.progress(self.now.images)

        config = self.config
        reason = "finished" if self.now.images >= config.train.images else self._asked_to_stop()
        finished = reason == "finished"
        sampling = config.sample.every and (finished or self._passed(config.sample.every, before))
        saving = self._passed(config.checkpoint.every, before)
        evaluating = self.evaluations is not None and (finished or self._passed(config.eval.every, before))
        is_best = False
        if evaluating:
            reason, is_best = self._evaluate(reason)
        saving = saving or is_best or bool(reason)
        if sampling or saving:
            self.world.average_buffers(self.G, self.D)
            ema.copy_buffers(self.G_ema, self.G)
        if sampling:
            self.tracker.measured(self.now.images, self._look())
        # Neither samples nor checkpoints cut a line short. That of a run that ends before one is due covers what there
        # is, and leaves it to the next one, should the run be made longer.
        is_due = self._passed(self._tick_images, before)
        if is_due or finished:
            self._tick(keep=not is_due)
        elif sampling or evaluating:
            self.tracker.show(self.now.images)
        if self.now.iterations == EARLY:
            self._tell_pace()
        if saving:
            self._save(is_best)
        return reason

    # The parts of an iteration.

    def next_batch(self) -> DeviceBatch:
        """The next images on the device; on a CPU they share memory with the stream's buffer."""
        if self._copied is not None:
            self._copied.synchronize()  # the stream takes that buffer back now
        self._phase("waiting for data")
        with self.stopwatch.waiting():
            try:
                batch = next(self.stream)
            except DataError as error:
                raise error.on_rank(self.world.rank) from None
        self.now.num_substituted += batch.num_substituted
        if self.audit is not None:
            self.audit.write(batch)
        images, degraded = (
            None if pixels is None else torch.from_numpy(pixels).to(self.world.device, non_blocking=True)
            for pixels in (batch.images, batch.degraded)
        )
        if self.world.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()
        labels = self.world.send(batch.labels) if self.num_classes else None
        return DeviceBatch(images, labels, *map(self.world.send, batch.drawn), degraded)

    def _d_step(self, batch: DeviceBatch) -> None:
        self._phase(D_STEP)
        set_rates(self.opt_D, self.controls.rates("D", self.now.images))
        self.step.d_step(batch, self.opt_D, self.controls.strengths(self.now.images), self.stopwatch.working)

    def _g_step(self, batch: DeviceBatch, images: int) -> None:
        self._phase(G_STEP)
        set_rates(self.opt_G, self.controls.rates("G", images))
        self.step.g_step(batch, self.opt_G, self.controls.strengths(images))

    def _phase(self, name: str) -> None:
        self.watch.phase(name)
        self.stopwatch.phase(name)
        self._on_phase(name)

    def _passed(self, every: int, before: int) -> bool:
        """Whether a multiple of `every` images lies in the iteration that began at `before`."""
        return every > 0 and self.now.images // every > before // every

    def _asked_to_stop(self) -> str:
        """Why to stop now, the same on every rank; ranks agree on it now and then, not in each step."""
        reason = preemption.asked() or ("finished" if self._is_out_of_time(self.stopwatch.total_sec) else "")
        if self.world.size == 1:
            return reason
        self._steps_to_poll -= 1
        if self._steps_to_poll > 0:
            return ""
        self._steps_to_poll = self._poll_every
        return STOP_REASONS[self.world.max(STOP_REASONS.index(reason))]

    def _is_out_of_time(self, train_sec: float) -> bool:
        return 0 < self.config.train.max_minutes * 60 <= train_sec

    # Now and then.

    def _evaluate(self, reason: str) -> tuple[str, bool]:
        """Measure the average generator. Returns why to stop then, and whether this is the best one so far.

        A run that is asked to stop meanwhile stops, and makes the evaluation when it is taken up.
        """
        ema.copy_buffers(self.G_ema, self.G)
        self.world.average_buffers(self.G_ema)  # of the copy: training goes on with its own
        try:
            row = self.evaluations.make(self.G_ema, self.now.images, self._poll_evaluation)
        except StopAsked as asked:
            self.now.owes_evaluation = asked.args[0] != "finished"
            return asked.args[0], False
        self.now.owes_evaluation = False
        self.now.eval_sec += row["Perf/eval_sec"]
        row["Perf/eval_pct"] = 100 * self.now.eval_sec / self.stopwatch.total_sec
        is_best = self.world.on_main(lambda: self.evaluations.is_best(row))
        self.tracker.evaluation(row, is_best)
        return reason, is_best

    def _poll_evaluation(self) -> None:
        self._phase("evaluating")
        if number := self.world.max(STOP_REASONS.index(preemption.asked())):
            raise StopAsked(STOP_REASONS[number])

    def _catch_up(self, reason: str) -> str:
        """The evaluation that a stop put off. Returns why to stop then."""
        reason, is_best = self._evaluate(reason)
        self._save(is_best)
        return reason

    def _look(self) -> dict[str, float]:
        """The generator's pictures of this moment, and what there is to measure of them."""
        self._phase("drawing samples")
        if self.world.is_main:
            self.gallery.fakes(self.G_ema, self.now.images)
            self.gallery.others(self.G, self.controls.p(self.now.images), self.now.images)
            self.gallery.judged(self.G, self.D, *self.step.last_judged())
        return self.gallery.measure(self.G_ema, self.world)

    def _tick(self, keep: bool) -> None:
        """One line of metrics, computed on every rank and written by rank 0. The next one covers it too with `keep`."""
        self._phase("gathering metrics")
        if num := self._check_skipped():
            limit = self.config.train.nan_limit
            log.warning(
                f"steps skipped, since loss or gradient were not finite: {self.now.num_skipped + num} of at most "
                f"{limit}"
            )
        row = self.step.meter.flush(self.controls.penalties(self.now.images), keep)
        speed, slow_rank = self.stopwatch.lap(self.now.images)
        if slow_rank:
            log.warning(slow_rank)
        row |= {
            "Progress/epoch": self.now.images / self.dataset.num_samples,
            "Progress/d_steps": self.now.images // self.spread.batch,
            "Progress/g_steps": self.now.iterations,
            "Progress/ema_beta": self.ema_decay,
            "EMA/dist": ema.distance(self.G_ema, self.G),
            **self.controls.row(self.now.images),
            "Diversity/fake_over_real": self._watch_diversity(),
            "Optim/rollbacks": self.now.num_rollbacks,
            "Data/substituted": sum(self.world.gather(self.now.num_substituted)),
            **speed,
            **(self._nodes.row() if self._nodes is not None else {}),
        }
        if not keep:
            self.now.num_skipped += num
            self.now.num_substituted = 0
        steps_per_sec = row["Perf/img_per_sec"] / self.spread.batch  # the same on every rank
        self._poll_every = max(1, min(1000, int(POLL_SEC * steps_per_sec)))
        self._steps_to_poll = min(self._steps_to_poll, self._poll_every)  # lines that come often put no poll off
        self._tell_damage()
        self.tracker.row(self.now.images, row)
        self._write_status("running")

    def _tell_damage(self) -> None:
        """What the stream found wrong with the data since it was last asked."""
        damaged = [one for found in self.world.gather(self.stream.newly_damaged()) for one in found]
        for one in self.folder.quarantine(damaged) if self.world.is_main else ():
            log.warning("damaged sample {key!r} in {shard}: {reason}; another takes its place".format(**one))
        for line in self.stream.news():
            log.warning(line)

    def _tell_pace(self) -> None:
        """Before the first line of metrics, that the run goes on; where nothing is finite, it ends here."""
        self._check_skipped()
        speed = self.now.images / (self.stopwatch.total_sec - self.now.eval_sec)
        left = duration((self.config.train.images - self.now.images) / speed)
        log.info(
            f"{EARLY} iterations, {self.now.images} images: {speed:.3g} images/s, {left} left; a line of metrics comes "
            f"every {self._tick_images} images"
        )

    def _watch_diversity(self) -> float:
        diversity = self.step.diversity()
        self._poor_lines = self._poor_lines + 1 if diversity < POOR else 0
        if self._poor_lines == POOR_LINES:
            self.tracker.alert(
                "Mode collapse?",
                f"the generator's images differ {diversity:.0%} as much as real ones, for {POOR_LINES} lines of "
                "metrics now: try model.minibatch=stddev, a larger loss.r1, augmentation, or balance.adapt=d_lr",
            )
        return diversity

    def _check_skipped(self) -> int:
        """The number of steps that were not taken since the last line, if the config allows for that many."""
        num, told = self.step.meter.skipped()
        train = self.config.train
        if num == 0 or (train.on_nan == "skip" and self.now.num_skipped + num <= train.nan_limit):
            return num
        raise DivergedError(f"after {self.now.images} images: {told}")

    def _way_out(self) -> str:
        kept = checkpoint.newest_first(self.folder.checkpoints)
        other = "train.on_nan=skip or rollback" if self.config.train.on_nan == "fail" else "a larger train.nan_limit"
        return (
            f"The last good state is {kept[0].name if kept else 'the start'}. Try lower learning rates (optim.*.lr), "
            f"a larger loss.r1, or {other}"
        )

    def _write_status(self, state: str, **values: object) -> None:
        if self.world.is_main:
            total = self.config.train.images
            self.folder.status(state, images=self.now.images, total_images=total, world=self.world.size, **values)

    # The beginning and the end.

    def _save(self, is_best: bool = False) -> None:
        self._phase("writing a checkpoint")
        self._check_skipped()
        if self.audit is not None:
            self.audit.flush()
        self._tell_damage()
        self.now.train_sec = self.stopwatch.total_sec
        path = self.state.save(self.folder.checkpoints)
        self._note_best()
        self.tracker.checkpoint(path, self.now.images, is_best)

    def _note_best(self) -> None:
        if self.evaluations is not None:
            self.world.on_main(self.evaluations.note_best)

    def _resume(self) -> int:
        """Go on from the last checkpoint, if there is one. Returns the image count of the last line of metrics."""
        path, is_own = self.world.on_main(lambda: checkpoint.choose(self.folder.checkpoints, self.config.run.resume))
        if path is not None:
            saved = self.state.load(path)
            self.now.wandb_id = saved["wandb_id"] if is_own else self.now.wandb_id
            log.info(f"going on from {path}, at {self.now.images} images")
            if changed := differences(self.config, saved, self.dataset.fingerprint):
                for line in difference_lines(changed):
                    log.info(line)
                self.world.on_main(lambda: self.folder.note_changes(changed))
            for what, value in self.state.conditions().items():
                if saved.get(what, value) != value:
                    log.info(
                        f"{what}: {saved[what]} before, {value} now: same samples and noise, other last bits of sums"
                    )
        logged_images = self.world.on_main(lambda: self.folder.rewind(self.now.images))
        if path is None and logged_images:
            log.warning(f"no checkpoint of the earlier start, which came to {logged_images} images: from the beginning")
        self._note_best()
        return logged_images

    def _roll_back(self) -> None:
        """Go on from the newest checkpoint, with noise that was not tried yet."""
        self._phase("going back to a checkpoint")
        path = self.world.on_main(lambda: checkpoint.find(self.folder.path))
        number, train_sec = self.now.num_rollbacks + 1, self.stopwatch.total_sec
        self.stream.close()
        if self.audit is not None:
            self.audit.close()
        self.state.load(path)
        self.now.num_rollbacks = number
        limit = self.config.train.nan_limit
        log.warning(f"going back to {path.name} with other noise ({number} of at most {limit} times)")
        self.tracker.logged_images = self.world.on_main(lambda: self.folder.rewind(self.now.images))
        self.stopwatch = Stopwatch(self.world, train_sec, self.now.images)
        self.audit = self._open_audit()
        self.stream = self.open_stream()

    def _describe(self) -> None:
        for line in factory.describe(self.config, self.spread, self.dataset, self.state.layout, self.G, self.D):
            log.info(line)
        if self.world.is_main:
            for line in warnings(self.config, self.spread):
                log.warning(f"warning: {line}")

    def _describe_pixels(self) -> None:
        """Report what becomes of the images' pixels; a few are read, so a server that hangs is noticed here too."""
        self._phase("waiting for data" if self.world.is_main else "waiting for rank 0 to look at images")
        data = self.config.data
        lines, warned = self.world.on_main(lambda: pixels.report(self.dataset, data.crop, data.max_pixels))
        for line in lines:
            log.info(line)
        for line in warned if self.world.is_main else ():
            log.warning(f"warning: {line}")

    def _open_audit(self) -> Audit | None:
        return Audit(self.folder.path / "audit", self.world.rank, self.dataset) if self.config.data.audit else None

    def open_stream(self, with_noise: bool = True) -> Stream:
        """From where the run stands. Without the noise that steps take, it has images and labels alone."""
        noise = Noise(self.config.train.seed, self.config.model.z_dim, self.now.num_rollbacks)
        draw = noise if with_noise else lambda positions: ()
        return factory.open_stream(
            self.config, self.world, self.spread, self.dataset, self.state.layout, self.now.images, draw
        )

    def _tell_hang(self, error: MachineError) -> None:
        """On the console first, then where a disk that hangs may keep it from."""
        rank = self.world.rank
        show(f"distgan train: rank {rank}: {public_line(str(error))}", file=sys.stderr)
        self.folder.tell_failure(error.on_rank(rank), rank, self.world.size)
        with open(self.folder.path / "logs" / f"rank_{rank:05d}.stacks.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)

    def _end(self, reason: str) -> None:
        """Tell how it ended; the checkpoint is written."""
        state = "finished" if reason == "finished" else "preempted"
        self._write_status(state, reason=reason, checkpoint=checkpoint.newest_first(self.folder.checkpoints)[0].name)
        self.tracker.finish(reason, self.now.images)
        log.info(
            f"{reason} at {self.now.images} images after {self.stopwatch.total_sec / 60:.1f} min: {self.folder.path}"
        )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates.lr
        if "betas" in group:
            group["betas"] = rates.betas
