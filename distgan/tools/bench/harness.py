"""Set up a trainer to be measured: the ranks, a temporary folder, made-up data, and a run without an end."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from distgan.config.batch_plan import BatchPlan
from distgan.config.schema import Config, image_spec
from distgan.data.synthetic import write_shards
from distgan.distributed import launch_env
from distgan.distributed.process_group import World
from distgan.storage.run_dir import RunDir
from distgan.training.factory import build_nets
from distgan.training.learner import Learner
from distgan.training.run import open_world
from distgan.training.trainer import Trainer

SYNTHETIC = "synthetic"  # as data.shards
FOREVER = 2**60


@contextlib.contextmanager
def temporary_run(config: Config) -> Iterator[tuple[Config, World]]:
    """Open the ranks, and make the config into one that runs in a folder that is gone afterwards."""
    world = open_world(config)
    folder = Path(tempfile.gettempdir()) / f"distgan-bench-{world.broadcast_object(secrets.token_hex(6))}"
    writes = launch_env.node_rank() == 0  # on every node
    try:
        if config.data.shards == [SYNTHETIC]:
            config = replace(config, data=replace(config.data, shards=[str(folder / "shards")]))
            if writes:
                num = 4 * max(config.train.batch, 256)
                write_shards(folder / "shards", num, image_spec(config.data), config.data.classes or 10)
            world.barrier()
        yield endless(config, folder / "run"), world
        world.barrier()
    finally:
        if writes:
            shutil.rmtree(folder, ignore_errors=True)
    world.close()


def endless(config: Config, folder: Path) -> Config:
    """Return the config of the same run, which neither ends nor saves nor draws samples."""
    return replace(
        config,
        run=replace(config.run, dir=str(folder), resume="never", timeout_sec=10**6),  # it waits for its turn
        data=replace(config.data, audit=False),
        train=replace(config.train, images=FOREVER, max_minutes=0.0),
        sample=replace(config.sample, every=0),
        eval=replace(config.eval, every=0),
        checkpoint=replace(config.checkpoint, every=FOREVER),
        wandb=replace(config.wandb, mode="disabled"),
    )


@contextlib.contextmanager
def running_trainer(
    config: Config,
    world: World,
    batch_plan: BatchPlan,
    make_nets: Callable = build_nets,
    on_phase: Callable[[str], None] = lambda name: None,
) -> Iterator[Trainer]:
    """Open a trainer that is ready for its first iteration."""
    folder = RunDir(config.run.dir)
    world.run_on_main(lambda: folder.open(["distgan", "bench"]))
    try:
        trainer = Trainer(Learner(config, world, batch_plan, make_nets), folder, 0, on_phase)
        try:
            yield trainer
        finally:
            trainer.close()
    finally:
        folder.close()
