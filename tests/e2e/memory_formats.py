"""Measure which memory format is faster on this CPU, which `memory_format.FASTER_ON_CPU` has by family.

Usage: OMP_NUM_THREADS=1 PYTHONPATH=. python tests/e2e/memory_formats.py CONFIG BATCH [ROUNDS]: CPU time of iterations
in channels_last over those in NCHW, in turns: median, lowest and highest ratio.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load
from distgan.data.synthetic import write_shards
from distgan.distributed.process_group import World
from distgan.image_spec import square
from distgan.training.learner import Learner
from distgan.training.memory_format import FORMATS
from distgan.training.step_inputs import StepBatch


def iterate(learner: Learner) -> float:
    """Train for one iteration on images of noise; returns its CPU time in seconds."""
    config, num = learner.config, learner.batch_plan.batch
    side, before = config.data.resolution, learner.state.images
    labels = torch.randint(0, learner.num_classes, (num,)) if learner.num_classes else None
    z_d, z_g = torch.randn(2, num, config.model.z_dim)
    images, seeds = torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8), torch.randint(0, 2**62, (num,))
    batch = StepBatch(images, labels, z_d, z_g, seeds)
    started = time.process_time()
    for _ in range(learner.schedulers.num_d_steps()):
        learner.d_step(batch, contextlib.nullcontext)
    learner.g_step(batch, before)
    learner.average_weights(before)
    return time.process_time() - started


def main(path: str, batch: int, rounds: int = 6) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "shards", 64, square(32))
        settings = [f"data.shards={folder}/shards", "data.holdout=0", "wandb.mode=disabled", f"train.batch={batch}"]
        learners = {}
        for name in FORMATS:
            config = load(path, [*settings, f"train.memory_format={name}"])
            learners[name] = Learner(config, World(), make_batch_plan(config, 1))
            iterate(learners[name])
    ratios = []
    for number in range(rounds):
        names = list(learners)[:: 1 if number % 2 else -1]
        seconds = {name: iterate(learners[name]) for name in names}
        ratios.append(seconds["channels_last"] / seconds["contiguous"])
    print(f"{path} at batch {batch}: {statistics.median(ratios):.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
