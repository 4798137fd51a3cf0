"""Resume a run from one of its checkpoints, or roll it back to one."""

import logging
from pathlib import Path

from distgan.config import plugins
from distgan.config.schema import Config
from distgan.errors import DivergedError
from distgan.storage import checkpoint_folder
from distgan.storage.run_dir import RunDir
from distgan.training import checkpointer, init_weights
from distgan.training.checkpointer import changed_settings, difference_lines
from distgan.training.learner import Learner

log = logging.getLogger("distgan")


def resume(learner: Learner, folder: RunDir, path: Path | None, is_own: bool) -> int:
    """Load the checkpoint that was chosen, if there is one, on all ranks.

    Args:
        path, is_own: What `checkpoint_folder.choose` returned.

    Returns:
        The image count of the last line of metrics that is kept: later lines are removed.
    """
    config, world, state = learner.config, learner.world, learner.state
    if path is not None:
        saved = checkpointer.load(learner, path)
        if is_own:
            world.run_on_main(lambda: checkpoint_folder.set_aside_newer(folder.checkpoints, path, config.run.resume))
        state.wandb_id = saved["wandb_id"] if is_own else state.wandb_id
        log.info(f"resuming from {path}, at {state.images} images")
        if changed := changed_settings(config, saved, learner.dataset.fingerprint):
            for line in difference_lines(changed):
                log.info(line)
            world.run_on_main(lambda: folder.record_changes(changed))
        for line in plugins.differences(saved.get("plugins", {}), plugins.digests(config.plugins)):
            log.warning(f"warning: since the checkpoint, {line}")
        before = checkpointer.FORMER_CONDITIONS | dict(saved)
        for what, value in checkpointer.conditions(learner).items():
            if before.get(what, value) != value:
                log.info(f"{what}: {before[what]} before, {value} now: same samples and noise, other last bits of sums")
    elif config.init.source:
        init_weights.start(learner, folder)
    logged_images = world.run_on_main(lambda: folder.truncate_after(state.images))
    if path is None and logged_images:
        log.warning(f"the previous start reached {logged_images} images but saved no checkpoint: starting from scratch")
    return logged_images


def saved_memory_format(path: Path | None) -> str:
    """Return the memory format of the checkpoint that a run resumes from; "" without one."""
    if path is None:
        return ""
    return str((checkpointer.FORMER_CONDITIONS | dict(checkpoint_folder.read_state(path)))["memory format"])


def roll_back(learner: Learner, folder: RunDir) -> int:
    """Load the newest checkpoint, and continue with noise that was not tried yet. Returns as `resume` does."""
    world, state = learner.world, learner.state
    path = world.run_on_main(lambda: checkpoint_folder.find(folder.path))
    number = state.num_rollbacks + 1
    checkpointer.load(learner, path)
    state.num_rollbacks = number
    log.warning(
        f"rolling back to {path.name} with other noise ({number} of at most {learner.config.train.nan_limit} times)"
    )
    return world.run_on_main(lambda: folder.truncate_after(state.images))


def may_roll_back(learner: Learner) -> bool:
    """Return whether a run that diverged rolls back to a checkpoint, rather than ending."""
    train = learner.config.train
    return train.on_nan == "rollback" and learner.state.num_rollbacks < train.nan_limit


def check_skipped(learner: Learner) -> int:
    """Return the number of steps skipped since the last line of metrics.

    Raises:
        DivergedError: There are more of them than the config allows.
    """
    train, state = learner.config.train, learner.state
    num, reason = learner.step.stats.skipped()
    if num == 0 or (train.on_nan == "skip" and state.num_skipped + num <= train.nan_limit):
        return num
    raise DivergedError(f"after {state.images} images: {reason}")


def hint(config: Config, checkpoints: Path) -> str:
    """Return what to do after a run diverged."""
    kept = checkpoint_folder.newest_first(checkpoints)
    other = "train.on_nan=skip or rollback" if config.train.on_nan == "fail" else "a larger train.nan_limit"
    return (
        f"The last good state is {kept[0].name if kept else 'the start'}. Try lower learning rates (optim.*.lr), "
        f"a larger loss.r1, or {other}"
    )
