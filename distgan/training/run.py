"""A run from start to end: set up ranks and run folder, train, record how it ended."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from distgan.config import plugins
from distgan.config.batch_plan import less_memory, make_batch_plan
from distgan.config.records import to_dict
from distgan.config.schema import Config
from distgan.config.validate import warnings
from distgan.distributed import launch_env, preemption
from distgan.distributed.process_group import World
from distgan.distributed.watchdog import GRACE_SEC
from distgan.errors import DistganError, FailedError, StoppedError, StopReason
from distgan.storage.checkpoint_folder import choose, newest_first, require_left
from distgan.storage.run_dir import RunDir, command_line
from distgan.tracking.console import start_logging
from distgan.training import factory, recovery
from distgan.training.callbacks import Callback
from distgan.training.learner import AS_CONFIGURED, Learner, OwnObjects
from distgan.training.trainer import Trainer

log = logging.getLogger("distgan")


def train(config: Config, callbacks: Sequence[Callback] = (), own: OwnObjects = AS_CONFIGURED) -> int:
    """Train until done; returns the exit code: 0 finished, 75 saved on a signal, 130 saved on Ctrl-C."""
    world = open_world(config)
    world.require_same_on_all_ranks(
        config=digest(json.dumps(to_dict(config)).encode()),
        code=digest_of_code(),
        plugins=digest(json.dumps(plugins.digests(config.plugins)).encode()),
        torch=torch.__version__,
    )
    batch_plan = make_batch_plan(config, world.size)
    folder = RunDir(config.run.dir)
    length = config.train
    world.run_on_main(lambda: require_left(folder.checkpoints, config.run.resume, length.images, length.max_minutes))
    world.run_on_main(lambda: folder.open(command_line()))
    world.run_on_main(lambda: folder.keep_plugins(*plugins.record(config.plugins)))
    if world.is_main:
        preemption.call_on_forced_exit(lambda: folder.record_end("failed", "interrupted without saving", world.size))
    try:
        start_logging(folder.path, world.rank)
        if world.is_main:
            for line in (*world.device_warnings, *launch_env.ignored_settings(config.train.precision)):
                log.warning(f"warning: {line}")
        resumed, is_own = world.run_on_main(lambda: choose(folder.checkpoints, config.run.resume))
        learner = Learner(
            config, world, batch_plan, saved_memory_format=lambda: recovery.saved_memory_format(resumed), own=own
        )
        reason = _train(learner, folder, recovery.resume(learner, folder, resumed, is_own), callbacks)
    except StoppedError as stopped:
        reason = stopped.reason
        log.info(str(stopped))
        if world.is_main:
            folder.record_end("preempted", reason.word, world.size)
    except Exception as error:
        log.debug("the run failed", exc_info=error)
        if isinstance(error, DistganError):
            failure = error
        else:
            failure = FailedError.of(error, world.rank, folder.path, less_memory(config, batch_plan))
        folder.record_failure(failure, world.rank, world.size)
        raise failure from error
    finally:
        folder.close()
    world.close()
    return reason.exit_code


def _train(learner: Learner, folder: RunDir, logged_images: int, callbacks: Sequence[Callback]) -> StopReason:
    """Train what was resumed; a run that is finished already stays so, and status.json says it."""
    config = learner.config
    if learner.is_done and not (config.eval.every and learner.state.evaluation_pending):
        log.info(f"{folder.path} is finished at {learner.state.images} images: nothing to do")
        was_refused = learner.world.is_main and folder.read_status().get("state") != "finished"
        if was_refused:  # a start between then and now
            newest = newest_first(folder.checkpoints)[0].name
            reason = StopReason.FINISHED.word
            folder.write_status("finished", **learner.progress(), reason=reason, checkpoint=newest)
        return StopReason.FINISHED
    for line in factory.describe(config, learner.batch_plan, learner.dataset, learner.layout, learner.G, learner.D):
        log.info(line)
    if learner.world.is_main:
        for line in warnings(config, learner.batch_plan):
            log.warning(f"warning: {line}")
    return Trainer(learner, folder, logged_images, callbacks=callbacks).train()


def open_world(config: Config) -> World:
    """Join the ranks that were launched."""
    return World(
        timeout_sec=config.run.timeout_sec + 2 * GRACE_SEC,  # a rank that hangs has its own word before that
        deterministic=config.train.deterministic,
        tf32=config.train.tf32,
        sync=config.train.grad_sync,
        bucket_mb=config.train.bucket_mb,
        bf16_gradients=config.train.grad_compression == "bf16",
        bf16=config.train.precision == "bf16",
    )


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def digest_of_code() -> str:
    """Return the digest of the package that runs here."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return digest(b"\0".join(path.read_bytes() for path in files))
