"""Evaluate the average generator periodically during a training, on all ranks, and record the best checkpoint."""

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from distgan.config.schema import Config, best_metric, image_spec
from distgan.data.dataset import Dataset
from distgan.distributed.process_group import World
from distgan.evaluation.image_sets import GeneratedImages, ShardImages, draw_labels
from distgan.evaluation.measure import CheckStop, check_metrics, measure
from distgan.evaluation.reference import is_statistics, load_reference, open_shards, shard_images
from distgan.inference.condition_examples import ConditionExamples
from distgan.metrics.extractors import open_extractor
from distgan.metrics.names import EVAL_METRICS
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import value_name
from distgan.storage import checkpoint_folder
from distgan.storage.run_dir import RunDir
from distgan.transforms.image_values import shown_as

log = logging.getLogger("distgan")


class PeriodicEvaluation:
    """Measures the average generator, with the same latents and labels each time.

    Args:
        dataset: The training images, which are the real images unless the config names others.
        examples: Conditions of real images, from which generated ones take theirs; None without conditions.

    Raises (on all ranks):
        ConfigError, DataError: The first evaluation would fail, for example because weights are missing.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        dataset: Dataset,
        folder: RunDir,
        examples: ConditionExamples | None = None,
    ) -> None:
        settings, image = config.eval, image_spec(config.data)
        self._config, self._world, self._folder = config, world, folder
        self._extractor = world.run_on_all(
            lambda: open_extractor(
                settings.extractor,
                settings.weights,
                settings.resizer,
                world.device,
                settings.download,
                shown_as(image, settings.bands),
            )
        )
        self._real: Reference | None = None
        self._images: ShardImages | None = None
        if is_statistics(config):
            self._real = load_reference(config, self._extractor, None, image, world)
        else:
            # Labels of a reference are not used here, so it may have any classes.
            real = open_shards(config, settings.reference, 0, world) if settings.reference else dataset
            self._images = shard_images(config, real, image, world)
        has_points = self._images is not None or world.broadcast_object(
            self._real is not None and self._real.has_points
        )
        check_metrics(settings.metrics, self._extractor, settings.num_images, has_points=has_points)
        self._labels: np.ndarray | None
        if examples is not None:
            self._labels = examples.encoded(settings.seed, np.arange(settings.num_images))
        else:
            self._labels = draw_labels(
                settings.labels, settings.seed, settings.num_images, dataset.class_counts, dataset.class_names
            )
        self._has_reference = self._images is None

    def run(self, G_ema: nn.Module, images: int, check_stop: CheckStop) -> dict[str, float | None]:
        """Evaluate once and return the row of evals.jsonl, the same on all ranks; the training's state stays the same.

        Args:
            images: Real images consumed so far.

        Raises:
            StopRequested: `check_stop` raised it, on all ranks.
        """
        started = time.perf_counter()
        settings, world = self._config.eval, self._world
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if not self._has_reference:
                image = image_spec(self._config.data)
                self._real = load_reference(self._config, self._extractor, self._images, image, world, check_stop)
                self._has_reference = True
            fakes = GeneratedImages(
                G_ema,
                self._config.model.z_dim,
                image_spec(self._config.data),
                seed=settings.seed,
                num=settings.num_images,
                labels=self._labels,
                bands=settings.bands,
            )
            measured = measure(world, self._extractor, self._real, fakes, settings.metrics, check_stop=check_stop)
        for warning in measured.warnings if images <= settings.every else ():  # once, not each time
            log.warning(f"evaluation: {warning}")
        row: dict[str, float | None] = {"Progress/images": images, "Progress/kimg": images / 1000}
        for name, (value, _) in measured.values.items():
            row[self._key(name)] = value if math.isfinite(value) else None
        return row | {"Perf/eval_sec": time.perf_counter() - started}

    def is_best(self, row: dict[str, float | None]) -> bool:
        """Return whether a row that is not written yet is better than all before it; on rank 0."""
        best = self._best()
        return self._worth(row) < (self._worth(best) if best else math.inf)

    def record_best(self) -> None:
        """Record the best checkpoint, so that it is kept; on rank 0.

        It is a function of evals.jsonl and of the checkpoints that are there, so it is the same after a resume.
        """
        best, key = self._best(), self._key(best_metric(self._config.eval))
        record = {"checkpoint": self._checkpoint(best).name, "metric": key, "value": best[key]} if best else None
        checkpoint_folder.record_best(self._folder.checkpoints, record)

    def _best(self) -> dict | None:
        """Return the best row whose checkpoint is there, the first of equal ones."""
        rows = [row for row in self._folder.evaluations() if (self._checkpoint(row) / "manifest.json").exists()]
        rows = [row for row in rows if self._worth(row) < math.inf]
        return min(rows, key=self._worth, default=None)

    def _worth(self, row: dict[str, float | None]) -> float:
        """Return a number that is smallest for the best row, and infinite for a row without the metric."""
        metric = best_metric(self._config.eval)
        value = row.get(self._key(metric)) if metric else None
        return math.inf if value is None else value if EVAL_METRICS[metric] == "lower" else -value

    def _checkpoint(self, row: dict) -> Path:
        return self._folder.checkpoints / f"step-{row['Progress/images']:012d}"

    def _key(self, name: str) -> str:
        whole = self._images is not None
        return f"Metrics/{value_name(name, self._extractor, self._config.eval.num_images, whole)}"
