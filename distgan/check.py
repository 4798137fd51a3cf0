"""What a config would do, without doing it: shards, batch plan, networks, disk, W&B."""

import os
import shutil
from pathlib import Path

from distgan import build
from distgan.config import BatchPlan, Config
from distgan.errors import MachineError


def check(config: Config, spread: BatchPlan) -> list[str]:
    """Lines that describe the run. Raises what the run itself would raise before its first step."""
    dataset = build.open_dataset(config)
    G, D = build.build_nets(config, dataset.num_classes)
    lines = build.describe(config, spread, dataset, build.choose_layout(config, dataset), G, D)
    return [*lines, _disk(config, build.checkpoint_bytes(G, D)), _wandb(config)]


def _disk(config: Config, checkpoint_bytes: int) -> str:
    """Room for one checkpoint more than are kept, since a new one is written before an old one goes."""
    folder = Path(config.run.dir).expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise MachineError(f"run.dir={config.run.dir}: {existing} cannot be written")
    free, needed = shutil.disk_usage(existing).free, (config.checkpoint.keep_last + 1) * checkpoint_bytes
    if free < needed:
        raise MachineError(
            f"run.dir={config.run.dir}: checkpoints need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "lower checkpoint.keep_last, or choose another disk"
        )
    return f"run folder: {config.run.dir}, {free / 1e9:.0f} GB free, {needed / 1e9:.2f} GB needed for checkpoints"


def _wandb(config: Config) -> str:
    mode = os.environ.get("WANDB_MODE")
    return f"wandb: {mode} (from WANDB_MODE)" if mode else f"wandb: {config.wandb.mode}"
