"""The evaluations of a run: the average generator measured on all ranks, and which checkpoint was the best."""

import logging
import math
import time
from pathlib import Path

import torch
from torch import nn

from distgan.config.schema import Config, best_metric
from distgan.data.dataset import Dataset
from distgan.distributed.process_group import World
from distgan.evaluation.image_sets import GeneratedImages, draw_labels
from distgan.evaluation.measure import Poll, check_metrics, measure
from distgan.evaluation.reference import is_statistics, know_reals, open_shards, shard_images
from distgan.metrics.extractors import open_extractor
from distgan.metrics.names import EVAL_METRICS
from distgan.metrics.registry import value_name
from distgan.storage import checkpoint_folder
from distgan.storage.run_dir import RunFolder

log = logging.getLogger("distgan")


class Evaluations:
    """Made with the same latents and labels each time, so that what differs is the generator.

    Args:
        dataset: What the run trains on; real images come from there if the config names no others.

    Raises (on all ranks):
        ConfigError, DataError: where the first evaluation would fail, such as weights that are missing.
    """

    def __init__(self, config: Config, world: World, dataset: Dataset, folder: RunFolder) -> None:
        settings, resolution = config.eval, config.data.resolution
        self._config, self._world, self._folder = config, world, folder
        self._extractor = world.together(
            lambda: open_extractor(
                settings.extractor, settings.weights, settings.resizer, world.device, settings.download
            )
        )
        self._real = self._images = None
        if is_statistics(config):
            self._real = know_reals(config, self._extractor, None, resolution, world, lambda: None)
        else:
            # A reference is a set of images alone: its labels are of no use here, whatever classes it has.
            real = open_shards(config, settings.reference, 0, world) if settings.reference else dataset
            self._images = shard_images(config, real, resolution, world)
        has_points = self._images is not None or world.broadcast(world.is_main and self._real.has_points)
        check_metrics(settings.metrics, self._extractor, settings.num_images, has_points=has_points)
        self._labels = draw_labels(settings.labels, settings.seed, settings.num_images, dataset.class_counts)
        self._knows_reals = self._images is None

    def make(self, G_ema: nn.Module, images: int, poll: Poll) -> dict[str, float | None]:
        """One evaluation, as a row of evals.jsonl; the same on all ranks. Nothing of the training is touched.

        Raises:
            StopAsked: by `poll`, on all ranks.
        """
        started = time.perf_counter()
        settings, world = self._config.eval, self._world
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if not self._knows_reals:
                resolution = self._config.data.resolution
                self._real = know_reals(self._config, self._extractor, self._images, resolution, world, poll)
                self._knows_reals = True
            z_dim, resolution = self._config.model.z_dim, self._config.data.resolution
            fakes = GeneratedImages(
                G_ema, z_dim, resolution, seed=settings.seed, num=settings.num_images, labels=self._labels
            )
            found = measure(world, self._extractor, self._real, fakes, settings.metrics, poll=poll)
        for word in found.warnings if images <= settings.every else ():  # once, not each time
            log.warning(f"evaluation: {word}")
        values = {self._key(name): value for name, (value, _) in found.values.items()}
        row = {"Progress/images": images, "Progress/kimg": images / 1000}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        return row | {"Perf/eval_sec": time.perf_counter() - started}

    def is_best(self, row: dict[str, float | None]) -> bool:
        """Whether a row, not written down yet, is better than all before it; asked on rank 0."""
        best = self._best()
        return self._worth(row) < (self._worth(best) if best else math.inf)

    def note_best(self) -> None:
        """Write down which checkpoint is the best, so that it is kept; on rank 0.

        That is a function of evals.jsonl and of the checkpoints that are there, so a resumed run comes to the same.
        """
        best, key = self._best(), self._key(best_metric(self._config.eval))
        told = {"checkpoint": self._checkpoint(best).name, "metric": key, "value": best[key]} if best else None
        checkpoint_folder.record_best(self._folder.checkpoints, told)

    def _best(self) -> dict | None:
        """The best row whose checkpoint is there, the first of equal ones."""
        rows = [row for row in self._folder.evaluations() if (self._checkpoint(row) / "manifest.json").exists()]
        rows = [row for row in rows if self._worth(row) < math.inf]
        return min(rows, key=self._worth, default=None)

    def _worth(self, row: dict[str, float | None]) -> float:
        """By which the best row is the smallest; infinite where it cannot be told."""
        metric = best_metric(self._config.eval)
        value = row.get(self._key(metric)) if metric else None
        return math.inf if value is None else value if EVAL_METRICS[metric] == "lower" else -value

    def _checkpoint(self, row: dict) -> Path:
        return self._folder.checkpoints / f"step-{row['Progress/images']:012d}"

    def _key(self, name: str) -> str:
        whole = self._images is not None
        return f"Metrics/{value_name(name, self._extractor, self._config.eval.num_images, whole)}"
