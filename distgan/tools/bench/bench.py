"""Measure how fast a run is, and where its time goes: the real trainer, measured next to references in one process."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from distgan.config.batch_plan import BatchPlan, less_memory, make_batch_plan
from distgan.config.decode_options import decode_options
from distgan.config.schema import Augment, Balance, Config, restores
from distgan.data.decode import decode_into
from distgan.distributed.process_group import World
from distgan.errors import MachineError, out_of_memory
from distgan.models.networks import num_weights
from distgan.tools.bench.bare_loop import BareLoop, check_supported, null_nets
from distgan.tools.bench.harness import running_trainer, temporary_run
from distgan.tools.bench.table import Row
from distgan.tools.bench.traffic import bytes_reduced
from distgan.tools.bench.turns import Phases, Slice, Turns
from distgan.training.timing import Timeline, peak_memory
from distgan.training.trainer import Trainer

log = logging.getLogger("distgan")

ROUNDS = 5
NULL_SIDE, NULL_BATCH, NULL_ITERATIONS = 8, 16, 50
LOADED_IMAGES = 256
HOST, ADDED = "host time of an iteration with networks of one weight", "  of it, more than a bare loop takes"
MEMORY = (("process", "Resources/cpu_mem_gb"), ("GPU", "Resources/gpu_mem_peak_gb"))
SPANS = ("optimizer of D", "optimizer of G")  # which are within phases
PHASES = {  # label: the loop's name of the phase
    "D step": "in a step of D",
    "  its optimizer": "optimizer of D",
    "G step": "in a step of G",
    "  its optimizer ": "optimizer of G",
    "average generator": "averaging weights",
    "next batch": "waiting for data",
    "between two iterations": "between two iterations",
    "line of metrics": "gathering metrics",
}


def bench(config: Config, images: int = 0, against: Sequence[str] = (), rounds: int = ROUNDS) -> list[Row]:
    """Measure a run of this config on the ranks that were launched; the rows are whole on rank 0.

    Args:
        images: How many are trained on while it is measured; 0 takes slices of about 1.5 s.
        against: References that take turns with the run: "bare", the shortest loop that makes the same updates;
            "alone", every rank by itself at the same time, without the others.
    """
    if "bare" in against:
        check_supported(config)
    with temporary_run(config) as (config, world):
        batch_plan = make_batch_plan(config, world.size)
        try:
            return Bench(config, world, batch_plan, rounds).measure(images, against)
        except (RuntimeError, MemoryError) as error:  # torch's or NumPy's
            if (memory := out_of_memory(str(error))) is None:
                raise
            raise MachineError(f"{memory.line}: {less_memory(config, batch_plan)}").on_rank(world.rank) from error


class Bench:
    """One measurement; a figure is the median over rounds, with the lowest and the highest."""

    def __init__(self, config: Config, world: World, batch_plan: BatchPlan, rounds: int) -> None:
        self.config, self.world, self.batch_plan, self.rounds = config, world, batch_plan, rounds
        self.turns = Turns(world, rounds, config.data.prefetch)
        self.images = batch_plan.batch * config.train.n_critic  # of an iteration

    def measure(self, images: int, against: Sequence[str]) -> list[Row]:
        """Return the rows of the table; see `bench` for the arguments."""
        timeline = Timeline(self.world.device)
        with contextlib.ExitStack() as stack:
            trainer = stack.enter_context(
                running_trainer(self.config, self.world, self.batch_plan, on_phase=timeline.phase)
            )
            for net, optimizer in (("D", trainer.learner.opt_D), ("G", trainer.learner.opt_G)):
                timeline.time_optimizer(f"optimizer of {net}", optimizer)
            num = self.turns.warm_up(trainer.train_iteration, images, self.images)
            memory = self.world.all_gather_object(peak_memory(self.world.device))  # before the references take theirs
            sides: dict[str, Callable[[], object]] = {"run": trainer.train_iteration}
            if "alone" in against:
                sides["alone"] = stack.enter_context(self._alone()).train_iteration
            slices, phases = self.turns.take(sides, num, timeline=timeline)
            over_bare = self._over_bare(trainer, num) if "bare" in against else []
            rows = self._speed(slices["run"], num)
            rows += self._parts(phases)
            rows += self._penalties(trainer)
            rows += [
                Row(f"peak memory, {name}", "GB", [max(one[key] for one in memory)])
                for name, key in MEMORY
                if key in memory[0]
            ]
            rows += self._traffic(trainer)
            rows += self._loader(trainer)
        rows += [] if restores(self.config) else self._host()  # the least networks make images of noise
        return rows + over_bare + self._over_alone(slices, num)

    def _speed(self, slices: list[list[Slice]], num: int) -> list[Row]:
        walls = [max(one.wall_sec for one in of_ranks) for of_ranks in slices]
        total = [num * self.images / wall for wall in walls]
        steps = f"{self.config.train.n_critic} D step(s), one G step, {self.batch_plan.passes} pass(es)"
        return [
            Row("images per second", "img/s", total),
            Row("images per second and rank", "img/s", [x / self.world.size for x in total]),
            Row(f"an iteration: {steps}", "ms", [1000 * wall / num for wall in walls]),
        ]

    def _parts(self, phases: list[Phases]) -> list[Row]:
        """Return the time of each phase on rank 0; waiting for others in an all-reduce is part of a step."""
        rows = []
        for label, phase in PHASES.items():
            seconds, counts = zip(*(found.get(phase, (0.0, 0)) for found in phases))
            if any(counts):
                rows.append(Row(label, "ms", [1000 * s / max(1, n) for s, n in zip(seconds, counts)]))
        totals = [sum(s for name, (s, _) in found.items() if name not in SPANS) for found in phases]
        waits = [100 * found["waiting for data"][0] / total for found, total in zip(phases, totals)]
        return [*rows, Row("share of time that waits for data", "%", waits)]

    def _penalties(self, trainer: Trainer) -> list[Row]:
        """Return what each penalty adds to a D step in which it is applied."""
        due = trainer.learner.schedulers.step_hyperparams(0)
        none = replace(due, r1=0.0, r2=0.0, gp=0.0)
        kinds = {name: replace(none, **{name: getattr(due, name)}) for name in ("r1", "r2", "gp") if getattr(due, name)}
        batch = trainer.next_batch()
        times: dict[str, list[float]] = {name: [] for name in ("none", *kinds)}
        for number in range(-1 if kinds else self.rounds, self.rounds):
            for name, now in {"none": none, **kinds}.items():
                seconds = self.turns.seconds(partial(trainer.learner.step.d_step, batch, trainer.learner.opt_D, now))
                times[name] += [seconds] if number >= 0 else []
        return [
            Row(
                f"  {name}, where it is applied, adds",
                "ms",
                [1000 * (b - a) for a, b in zip(times["none"], times[name])],
            )
            for name in kinds
        ]

    def _traffic(self, trainer: Trainer) -> list[Row]:
        """Return bytes that this rank gives into all-reduces, and the time of an all-reduce of as many alone."""
        if self.world.size == 1:
            return []
        batch, now = trainer.next_batch(), trainer.learner.schedulers.step_hyperparams(0)
        steps = {
            "D": lambda: trainer.learner.step.d_step(batch, trainer.learner.opt_D, now),
            "G": lambda: trainer.learner.step.g_step(batch, trainer.learner.opt_G, now),
        }
        rows = []
        for net, step in steps.items():
            sent, weights = bytes_reduced(step), num_weights(getattr(trainer.learner, net))
            flat = torch.zeros(weights, device=self.world.device)
            times = [self.turns.seconds(partial(self.world.all_reduce_sum, flat)) for _ in range(self.rounds + 1)][1:]
            rows += [
                Row(f"all-reduced in a {net} step", "MB", [sent / 1e6]),
                Row(f"all-reduced in a {net} step, over the bytes of {net}", "x", [sent / (4 * weights)]),
                Row(
                    f"an all-reduce of {net}'s {4 * weights / 1e6:.1f} MB and nothing else",
                    "ms",
                    [1000 * t for t in times],
                ),
            ]
        return rows

    def _loader(self, trainer: Trainer) -> list[Row]:
        """Measure the stream alone, next to the decoding that it does, in CPU time of this rank."""
        stream, options = trainer.open_stream(with_noise=False), decode_options(self.config.data)
        try:
            out = np.empty(options.image.shape, options.image.dtype)
            batches = max(1, LOADED_IMAGES // len(next(stream).images))
            files = [file for _ in range(batches) for file in encoded(trainer, next(stream).samples)]
            ours, pure = [], []
            for _ in range(self.rounds):
                self.turns.wait_for_loaders()
                started = time.process_time()
                for _ in range(batches):
                    next(stream)
                self.turns.wait_for_loaders()
                ours.append(time.process_time() - started)
                started = time.process_time()
                for file in files:
                    decode_into(file, out, options)
                pure.append(time.process_time() - started)
        finally:
            stream.close()
        return [
            Row("loader: CPU time of an image", "ms", [1000 * seconds / len(files) for seconds in ours]),
            Row("loader: pure decoding over all of its CPU time", "x", [b / a for a, b in zip(ours, pure)]),
        ]

    def _host(self) -> list[Row]:
        """Measure CPU time of the thread that calls the device, with networks of one weight, which leave it all to the
        host."""
        bare_loss = replace(
            self.config.loss, r1=[0.0], r2=[0.0], gp=[0.0], weight_clip=0.0, label_smoothing=0.0, feature_matching=0.0
        )
        plain = replace(
            self.config,
            run=replace(self.config.run, dir=f"{self.config.run.dir}-null"),
            data=replace(self.config.data, resolution=NULL_SIDE, flip=False),
            loss=replace(bare_loss, name="non_saturating"),
            augment=Augment(),
            balance=Balance(),
            train=replace(
                self.config.train,
                batch=NULL_BATCH * self.world.size,
                micro_batch=0,
                precision="fp32",
                penalty_precision="fp32",
                n_critic=1,
                on_nan="fail",
            ),
        )
        batch_plan = make_batch_plan(plain, self.world.size)
        with quiet(), running_trainer(plain, self.world, batch_plan, null_nets) as trainer:
            slices = self._beside_bare(trainer, NULL_ITERATIONS, self.rounds)
        ours, theirs = (
            [1000 * of_ranks[0].host_sec / NULL_ITERATIONS for of_ranks in slices[side]] for side in ("run", "bare")
        )
        return [
            Row(HOST, "ms", ours),
            Row(ADDED, "ms", [a - b for a, b in zip(ours, theirs)]),
        ]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Trainer]:
        """Open each rank's share as a run of its own."""
        world, rank = self.world.single_rank(), self.world.rank
        train = replace(self.config.train, batch=self.batch_plan.batch // self.world.size)
        config = replace(self.config, train=train, run=replace(self.config.run, dir=f"{self.config.run.dir}-{rank}"))
        with running_trainer(config, world, make_batch_plan(config, 1)) as trainer:
            yield trainer

    def _beside_bare(self, trainer: Trainer, num: int, rounds: int) -> dict[str, list[list[Slice]]]:
        """Time the run and a bare loop of the same networks in turns of `num` iterations."""
        bare = BareLoop(trainer)
        try:
            slices, _ = self.turns.take({"run": trainer.train_iteration, "bare": bare.iterate}, num, rounds=rounds)
        finally:
            bare.close()
        return slices

    def _over_bare(self, trainer: Trainer, num: int) -> list[Row]:
        """Compare a run with a bare loop. On a CPU, whose speed changes within seconds where it is shared, the two
        take turns after each iteration."""
        on_gpu = self.world.device.type == "cuda"
        turn = num if on_gpu else 1
        slices = self._beside_bare(trainer, turn, self.rounds * num // turn)
        ours, theirs = (
            np.array([sum(one.wall_sec if on_gpu else one.cpu_sec for one in of_ranks) for of_ranks in slices[side]])
            for side in ("run", "bare")
        )
        of_rounds = np.median((ours / theirs).reshape(self.rounds, -1), axis=1)
        clock = "wall time" if on_gpu else "CPU time of all threads"
        return [Row(f"over a bare loop, {clock}", "x", of_rounds.tolist())]

    def _over_alone(self, slices: dict[str, list[list[Slice]]], num: int) -> list[Row]:
        if "alone" not in slices:
            return []
        share = num * self.images
        together = [share / max(one.wall_sec for one in of_ranks) for of_ranks in slices["run"]]
        apart = [sum(share / self.world.size / one.wall_sec for one in of_ranks) for of_ranks in slices["alone"]]
        name = f"img/s of {self.world.size} ranks over the same number of runs of one rank at the same time"
        return [Row(name, "x", [a / b for a, b in zip(together, apart)])]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, of a run that nobody asked for."""
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(logging.NOTSET)


def encoded(trainer: Trainer, samples: np.ndarray) -> list[bytes | list[bytes]]:
    """Return the encoded images of these samples."""
    data, found = trainer.dataset, []
    for shard, place in zip(*data.shard_of(samples)):
        located = data.located(int(shard))
        found.append(data.fetch(shard, located.images[0], place))
    return found
