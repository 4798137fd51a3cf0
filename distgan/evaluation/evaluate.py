"""The body of `distgan evaluate`: measure a run, a checkpoint or images, and write a report."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from distgan.data.dataset import Dataset
from distgan.distributed.process_group import World
from distgan.errors import ConfigError
from distgan.evaluation.image_sets import ShardImages
from distgan.evaluation.measure import Measurement, check_metrics, extract, measure
from distgan.evaluation.reference import is_statistics, load_reference, open_shards, shard_images
from distgan.evaluation.report import (
    EvaluateOptions,
    Evaluation,
    make_report,
    measurement_key,
    memorization,
    report_folder,
    report_path,
    require_writable,
    write_report,
)
from distgan.evaluation.target import Target, name_classes, open_target
from distgan.metrics import reference_stats
from distgan.metrics.extractors import Extractor, open_extractor
from distgan.metrics.names import EVAL_METRICS
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import METRICS
from distgan.transforms.image_values import shown_as

log = logging.getLogger("distgan")

MOST_UNSEEN = 10_000  # held-out images that are compared with training images


def evaluate(world: World, target: str, overrides: Sequence[str], options: EvaluateOptions) -> dict:
    """Measure a target, write the report, and return it; called by all ranks.

    Args:
        target: A run folder, a checkpoint, or images that `distgan pack` would take.

    Raises:
        ConfigError: A setting does not fit the target or the real images.
        DataError: Images or weights are corrupt.
        MachineError: The report cannot be written.
    """
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: at least 1")
    started = time.perf_counter()
    subject = open_target(target, overrides, world.device)
    config, settings = subject.config, subject.config.eval
    if options.memorization and is_statistics(config):
        raise ConfigError("--memorization needs the real images themselves: name shards in eval.reference")
    if folder := report_folder(subject, options):
        world.run_on_main(lambda: require_writable(folder))
    shown = shown_as(subject.image, settings.bands)
    extractor = world.run_on_all(
        lambda: open_extractor(
            settings.extractor, settings.weights, settings.resizer, world.device, settings.download, shown
        )
    )
    real_images = _open_reals(subject, world)
    warnings = [] if real_images is None else name_classes(subject, real_images.dataset)
    reference = load_reference(config, extractor, real_images, subject.image, world)
    class_counts = _class_counts(subject, real_images.dataset if real_images else None, world)
    metrics = _metrics(overrides, settings.metrics, extractor, _has_points(world, reference))
    seeds = [settings.seed + i for i in range(options.seeds if subject.is_generated else 1)]
    images = subject.images(seeds[0], class_counts)
    check_metrics(metrics, extractor, images.num)
    what = f"{len(seeds)} seed(s) of {images.num:,} images each (eval.num_images)"
    log.info(f"measuring {what if subject.is_generated else f'{images.num:,} images'} by {', '.join(metrics)}")

    measured: list[Measurement] = []
    for seed in seeds:
        images = subject.images(seed, class_counts)
        measured.append(measure(world, extractor, reference, images, metrics, with_errors=True))
        log.info(f"seed {seed}: {images.num:,} images in {measured[-1].seconds:.0f} s")
        if seed != seeds[-1]:
            measured[-1].extracted.features = None  # the rest needs those of one seed only
    unseen = None
    if options.memorization and options.holdout:
        dataset = _open_shards(subject, options.holdout, world)
        held_out = shard_images(config, dataset, subject.image, world)
        unseen = extract(world, extractor, held_out, MOST_UNSEEN)

    evaluation = Evaluation(subject, extractor, reference, real_images, seeds, measured, images, unseen, warnings)
    return world.run_on_main(lambda: _finish(evaluation, world, measurement_key(overrides, options), options, started))


def _finish(evaluation: Evaluation, world: World, asked: dict, options: EvaluateOptions, started: float) -> dict:
    """Make the report of an evaluation, write it, and return it; on rank 0."""
    report = make_report(evaluation, world, asked)
    path = report_path(evaluation.subject, options, report)
    if options.memorization and not evaluation.extracted.num_nonfinite:
        report["memorization"] = memorization(evaluation, path, world.device)
    report["seconds"] = round(time.perf_counter() - started, 1)
    if path is not None:
        report["file"] = str(path)
        write_report(path, report)
    if options.statistics:
        reference_stats.save(Path(options.statistics), evaluation.real)
    return report


def _open_reals(subject: Target, world: World) -> ShardImages | None:
    """Open the real images to compare with; None where eval.reference is a file of statistics."""
    config = subject.config
    if is_statistics(config):
        return None
    dataset = _open_shards(subject, config.eval.reference or config.data.shards, world)
    return shard_images(config, dataset, subject.image, world)


def _open_shards(subject: Target, shards: str | Sequence[str], world: World) -> Dataset:
    """Open shards of real images. Training images have the generator's classes; other real images may have more."""
    others = not subject.is_generated or shards != subject.config.data.shards
    return open_shards(subject.config, shards, subject.num_classes, world, may_have_more=others)


def _class_counts(subject: Target, reference_set: Dataset | None, world: World) -> Sequence[int]:
    """Return the number of training images of each class if labels are drawn by it; else 1, or 0 of unseen classes."""
    settings = subject.config.eval
    if not (subject.is_generated and subject.num_classes and settings.labels == "empirical"):
        return [int(label not in subject.unseen) for label in range(subject.num_classes)]
    if not subject.config.data.shards:
        raise ConfigError("eval.labels=empirical draws classes as data.shards has them: name these, or set uniform")
    training = None if settings.reference else reference_set
    if training is None:
        training = _open_shards(subject, subject.config.data.shards, world)
    counts = [0 if label in subject.unseen else count for label, count in enumerate(training.class_counts)]
    if not any(counts):
        raise ConfigError(
            "eval.labels=empirical draws classes as data.shards has them, which has no labels, or none of a class that "
            "the generator learned: name its training data, or set uniform"
        )
    return counts


def _has_points(world: World, reference: Reference | None) -> bool:
    """Return on all ranks whether rank 0's statistics hold features, not only their Gaussian."""
    return bool(world.broadcast_object(reference is not None and reference.has_points))


def _metrics(overrides: Sequence[str], asked: Sequence[str], extractor: Extractor, has_points: bool) -> list[str]:
    """Return the metrics that the command line names, or else all that are possible."""
    if any(text.startswith("eval.metrics") for text in overrides):
        chosen = list(asked)
        check_metrics(chosen, extractor, max(METRICS[name].least for name in chosen), has_points=has_points)
        return chosen
    return [
        name
        for name in EVAL_METRICS
        if (has_points or not METRICS[name].needs_points)
        and (extractor.num_logits or not METRICS[name].needs_logits)
        and name != "kid_full"
    ]
