"""Report what a config would do, without training: shards, batch plan, networks, disk, W&B."""

import math
import os
import shutil
from dataclasses import replace

from torch import nn

from distgan.config.batch_plan import BatchPlan
from distgan.config.decode_options import decode_options
from distgan.config.schema import Config, best_metric, image_spec, sides
from distgan.config.validate import warnings
from distgan.data import dataset_card, image_grid, pixels
from distgan.data.dataset import Dataset
from distgan.errors import ConfigError, MachineError
from distgan.evaluation.image_sets import draw_labels
from distgan.evaluation.measure import check_metrics
from distgan.evaluation.reference import is_statistics, open_shards, read_statistics
from distgan.metrics.extractors import open_extractor
from distgan.models import networks
from distgan.storage import checkpoint_folder
from distgan.storage.formatting import size
from distgan.storage.home import user_path
from distgan.storage.run_dir import file_in_the_way
from distgan.storage.urls import public
from distgan.tools.conformance import conformance
from distgan.tools.doctor.services import wandb_mode
from distgan.tools.report.history import read
from distgan.training import factory, init_weights, optimizers
from distgan.training.checkpointer import changed_settings, check_same_run, difference_lines
from distgan.transforms.image_values import shown_as


def check(config: Config, batch_plan: BatchPlan) -> tuple[list[str], list[str]]:
    """Return lines that describe the run, and warnings. Raises what the run would raise before its first step."""
    config = replace(config, data=replace(config.data, allow_pipe=False))  # a check runs no command of the config
    dataset = factory.open_dataset(config)
    config = factory.with_range(config, lambda: factory.range_of_data(config, dataset))
    part_lines, wrong = conformance(config, dataset.label_input)
    if wrong:
        raise ConfigError("parts of plugins are not as training needs them", *wrong)
    G, D = factory.build_nets(config, dataset.label_input)
    factory.freeze_weights(config, G, D)
    for name, net in (("G", G), ("D", D)):
        optimizers.build_optimizer(getattr(config.optim, name), net, f"optim.{name}")
    lines = factory.describe(config, batch_plan, dataset, factory.choose_layout(config, dataset), G, D)
    card_lines, card_warnings = _card(config, dataset)
    disk_lines, disk_warnings = _disk(config, networks.checkpoint_bytes(G, D), dataset.num_classes)
    if config.eval.every:
        lines.append(_evaluation(config, dataset))
    pixel_lines, pixel_warnings = pixels.report(dataset, decode_options(config.data))
    lines += [*part_lines, *card_lines, *pixel_lines, *disk_lines, *_earlier(config, dataset, G, D), _wandb(config)]
    return lines, [*warnings(config, batch_plan), *pixel_warnings, *card_warnings, *disk_warnings]


def _evaluation(config: Config, dataset: Dataset) -> str:
    settings = config.eval
    shown = shown_as(image_spec(config.data), settings.bands)
    extractor = open_extractor(settings.extractor, settings.weights, settings.resizer, "cpu", settings.download, shown)
    has_points = True
    if is_statistics(config):
        has_points = read_statistics(config, extractor, image_spec(config.data)).has_points
    elif settings.reference:
        open_shards(config, settings.reference, 0, None)
    check_metrics(settings.metrics, extractor, settings.num_images, has_points=has_points)
    draw_labels(settings.labels, settings.seed, 1, dataset.class_counts, dataset.class_names)
    what = f"{', '.join(settings.metrics)} of {settings.num_images:,} images by {extractor.identity}"
    best = best_metric(settings)
    return f"evaluation: every {settings.every:,} images, {what}" + (f"; best kept by {best}" if best else "")


def _card(config: Config, dataset: Dataset) -> tuple[list[str], list[str]]:
    """Return what the data set's own card says, and what of it does not go with the config."""
    found = dataset_card.read(dataset.urls[0])
    facts = [f"{name} {value}" for name, value in dataset_card.facts(found) if name not in ("images", "classes")]
    warned = []
    side, classes, image = found.get("resolution"), found.get("classes"), image_spec(config.data)
    height, width = found.get("height") or side, found.get("width") or side
    if isinstance(height, int) and isinstance(width, int) and (height, width) != (image.height, image.width):
        how = "enlarged" if height < image.height or width < image.width else "reduced"
        option = image.setting.strip("[]").replace(",", "x")
        warned.append(
            f"the images are stored at {width}x{height} pixels and would be {how} to {image.size} "
            f"(data.resolution={image.setting}) each time; `distgan pack SOURCE OUT --resolution {option}` does it once"
        )
    if isinstance(classes, list) and len(classes) > 1 and not config.model.conditional:
        warned.append(f"the data set has {len(classes)} classes, which model.conditional=false does not use")
    where = public(os.path.dirname(dataset.urls[0]))
    return ([f"data set card: {where}: {', '.join(facts)}"] if found else []), warned


def _disk(config: Config, checkpoint_bytes: int, num_classes: int) -> tuple[list[str], list[str]]:
    """Compare the disk with what it must hold: checkpoints, one more while it is written, and sample grids."""
    folder = user_path(config.run.dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if file := file_in_the_way(folder):
        raise MachineError(f"run.dir={config.run.dir}: {file} is a file: choose another run.dir")
    if not os.access(existing, os.W_OK):
        raise MachineError(f"run.dir={config.run.dir}: {existing} cannot be written")
    keep, images = config.checkpoint, config.train.images
    saved = -(-images // keep.every)
    kept = min(saved, keep.keep_last + (images // keep.keep_every if keep.keep_every else 0))
    rows, columns = image_grid.grid_shape(config.sample.rows, config.sample.columns, num_classes)
    grids = 2 + images // config.sample.every if config.sample.every else 1
    samples = grids * rows * columns * 3 * math.prod(sides(config.data))  # at most, since PNG packs them
    free, needed = shutil.disk_usage(existing).free, (kept + 1) * checkpoint_bytes + samples
    if free < checkpoint_bytes:
        raise MachineError(
            f"run.dir={config.run.dir}: a checkpoint needs {size(checkpoint_bytes)}, {size(free)} are free; "
            "choose another disk"
        )
    line = (
        f"disk: {size(needed)} at most for {kept} checkpoint(s), one more while it is written, and {grids:,} sample "
        f"grid(s); {size(free)} free in {existing}"
    )
    if free >= needed:
        return [line], []
    ways = "lower checkpoint.keep_last, raise checkpoint.keep_every or sample.every, or choose another disk (run.dir)"
    return [line], [f"the disk may become full: {size(needed)} needed, {size(free)} free; {ways}"]


def _earlier(config: Config, dataset: Dataset, G: nn.Module, D: nn.Module) -> list[str]:
    """Return what the run folder holds, and how long the rest would take at the speed that was seen there."""
    folder = user_path(config.run.dir)
    resume = config.run.resume
    checkpoint_folder.require_left(folder / "checkpoints", resume, config.train.images, config.train.max_minutes)
    start, is_own = checkpoint_folder.choose(folder / "checkpoints", resume)
    if start is None:
        return [
            f"run folder: {config.run.dir}, a new run",
            *(init_weights.plan(config, dataset, G, D).lines() if config.init.source else []),
        ]
    state = checkpoint_folder.read_state(start)
    check_same_run(config, state, dataset, start)
    left = max(0, config.train.images - state["images"])
    where = start.name if is_own else start
    lines = [f"run folder: {config.run.dir}, resumes from {where}: {left:,} images are left"]
    lines += difference_lines(changed_settings(config, state, dataset.fingerprint))
    try:
        speed = read(folder).last("Perf/img_per_sec")
    except ConfigError:  # it holds checkpoints and nothing else
        speed = None
    if speed and left:
        lines.append(
            f"speed: {speed:,.0f} images/s when last seen, {3.6 * speed:,.0f} kimg/h: {left / speed / 3600:.1f} h"
        )
    return lines


def _wandb(config: Config) -> str:
    mode, chosen = wandb_mode(config.wandb.mode)
    whose = f"{config.wandb.entity}/" if config.wandb.entity else ""
    return f"wandb: {chosen}" + (f", project {whose}{config.wandb.project}" if mode not in ("disabled", "none") else "")
