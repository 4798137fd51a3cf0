"""`distgan evaluate`: a run, a checkpoint or images -> numbers, with all that makes them comparable next to them."""

import itertools
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distgan.data import image_grid
from distgan.data.dataset import Dataset
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, MachineError
from distgan.evaluation.image_sets import ImageSet, ShardImages
from distgan.evaluation.measure import Extracted, Measured, check_metrics, extract, measure
from distgan.evaluation.reference import is_statistics, know_reals, open_shards, shard_images
from distgan.evaluation.target import Subject, name_classes, open_subject
from distgan.metrics import reference_stats
from distgan.metrics.extractors import Extractor, open_extractor
from distgan.metrics.memorization import nearness
from distgan.metrics.names import EVAL_METRICS
from distgan.metrics.per_class import class_distances, probe_accuracies, share_classes
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import METRICS, Features, value_name
from distgan.storage import formatting
from distgan.storage.atomic import replace_file
from distgan.storage.run_dir import git_state
from distgan.storage.urls import public
from distgan.version import __version__

log = logging.getLogger("distgan")

MOST_UNSEEN = 10_000  # held-out images that are looked at
PAIRS, COLUMNS = 24, 6  # of the image of the closest pairs


@dataclass(frozen=True)
class Options:
    """Of the command line: seeds to average over, files to write, and shards that were not trained on."""

    seeds: int = 3
    out: str = ""
    statistics: str = ""
    holdout: str = ""
    memorization: bool = False


def asked_for(overrides: Sequence[str], options: Options) -> dict:
    """What two measurements of the same images must share to be the same measurement, as JSON has it."""
    return {
        "settings": [public(text) for text in overrides],
        "seeds": options.seeds,
        "holdout": public(options.holdout),
        "memorization": options.memorization,
    }


def evaluate(world: World, target: str, overrides: Sequence[str], options: Options) -> dict:
    """Measure a target, write the report, and return it; called by all ranks.

    Args:
        target: A run folder, a checkpoint, or images that `distgan pack` would take.

    Raises:
        ConfigError, DataError, MachineError: as told by them.
    """
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: at least 1")
    started = time.perf_counter()
    subject = open_subject(target, overrides, world.device)
    settings = subject.config.eval
    if options.memorization and is_statistics(subject.config):
        raise ConfigError("--memorization needs the real images themselves: name shards in eval.reference")
    if folder := _folder(subject, options):
        world.on_main(lambda: _require_writable(folder))
    extractor = world.together(
        lambda: open_extractor(settings.extractor, settings.weights, settings.resizer, world.device, settings.download)
    )
    dataset = real_images = None
    if not is_statistics(subject.config):
        dataset = _open_shards(subject, settings.reference or subject.config.data.shards, world)
        real_images = shard_images(subject.config, dataset, subject.resolution, world)
    words = [] if dataset is None else name_classes(subject, dataset)
    real = know_reals(subject.config, extractor, real_images, subject.resolution, world, _no_poll)
    counts = _class_counts(subject, dataset, world)
    names = _metrics(overrides, settings.metrics, extractor, world.broadcast(real.has_points if world.is_main else 0))
    seeds = [settings.seed + i for i in range(options.seeds if subject.is_generated else 1)]
    num = subject.images(seeds[0], counts).num
    check_metrics(names, extractor, num)
    what = (
        f"{len(seeds)} seed(s) of {num:,} images each (eval.num_images)" if subject.is_generated else f"{num:,} images"
    )
    log.info(f"measuring {what} by {', '.join(names)}")

    found: list[Measured] = []
    for seed in seeds:
        images = subject.images(seed, counts)
        found.append(measure(world, extractor, real, images, names, poll=_no_poll, with_errors=True))
        log.info(f"seed {seed}: {images.num:,} images in {found[-1].seconds:.0f} s")
        if seed != seeds[-1]:
            found[-1].extracted.features = None  # of one seed is enough for what follows
    unseen = None
    if options.memorization and options.holdout:
        unseen_shards = _open_shards(subject, options.holdout, world)
        unseen_images = shard_images(subject.config, unseen_shards, subject.resolution, world)
        unseen = extract(world, extractor, unseen_images, MOST_UNSEEN, _no_poll)
    report: dict = {}
    last, images = found[-1].extracted, subject.images(seeds[-1], counts)

    def finish() -> None:
        report["asked"] = asked_for(overrides, options)
        report.update(_report(subject, extractor, real, found, seeds, world, whole=dataset is not None))
        report["warnings"] += words
        has_labels = last.features.labels is not None and real.features.labels is not None
        if has_labels and subject.num_classes and not last.num_nonfinite:
            names = dataset.class_names if dataset is not None and subject.is_generated else []
            classes, told = _by_class(real.features, last.features, subject, names)
            report.update({"classes": classes} if classes else {})
            report["warnings"] += told
        path = Path(options.out) if options.out else _place(folder, subject, report)
        if options.memorization and not last.num_nonfinite:
            report["memorization"] = _memorization(real, real_images, last, images, unseen, path)
        report["seconds"] = round(time.perf_counter() - started, 1)
        if path is not None:
            report["file"] = str(path)
            _write(path, report)
        if options.statistics:
            reference_stats.save(Path(options.statistics), real)

    world.on_main(finish)
    return report


def _open_shards(subject: Subject, shards: str | Sequence[str], world: World) -> Dataset:
    """Training images have the generator's classes; other real images may have more."""
    others = not subject.is_generated or shards != subject.config.data.shards
    return open_shards(subject.config, shards, subject.num_classes, world, may_have_more=others)


def _class_counts(subject: Subject, reference_set: Dataset | None, world: World) -> Sequence[int]:
    """Training images of each class, where labels are drawn after them; else 1, or 0 of one that was not learned."""
    settings, is_training_set = subject.config.eval, not subject.config.eval.reference
    if not (subject.is_generated and subject.num_classes and settings.labels == "empirical"):
        return [int(label not in subject.unseen) for label in range(subject.num_classes)]
    if not subject.config.data.shards:
        raise ConfigError("eval.labels=empirical draws classes as data.shards has them: name these, or set uniform")
    training = reference_set if is_training_set else _open_shards(subject, subject.config.data.shards, world)
    counts = [0 if label in subject.unseen else count for label, count in enumerate(training.class_counts)]
    if not any(counts):
        raise ConfigError(
            "eval.labels=empirical draws classes as data.shards has them, which has no labels, or none of a class that "
            "the generator learned: name its training data, or set uniform"
        )
    return counts


def _metrics(overrides: Sequence[str], asked: Sequence[str], extractor: Extractor, has_points: bool) -> list[str]:
    """Those that were asked for on the command line, or all that can be."""
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


def _report(
    subject: Subject,
    extractor: Extractor,
    real: Reference,
    found: list[Measured],
    seeds: list[int],
    world: World,
    *,
    whole: bool,
) -> dict:
    num = found[0].extracted.num
    values = {}
    for name in found[0].values:
        per_seed = [one.values[name][0] for one in found]
        errors = [one.values[name][1] for one in found]
        values[value_name(name, extractor, num, whole)] = {
            "mean": _number(float(np.mean(per_seed))),
            "sd": _number(float(np.std(per_seed, ddof=1))) if len(per_seed) > 1 else None,
            "standard_error": _number(float(np.mean(errors))),
            "per_seed": [_number(value) for value in per_seed],
        }
    return {
        "values": values,
        "subject": subject.origin,
        "num_generated": num,
        "seeds": seeds if subject.is_generated else None,
        "reference": {
            "key": real.key,
            "num_real": real.features.gaussian.num or None,
            "num_features_kept": len(real.features.points),
            "num_damaged": real.num_damaged,
            "file": real.file or None,
            **real.origin,
        },
        "extractor": {"name": extractor.name, "identity": extractor.identity, "dtype": "float32", "tf32": False},
        "pixels": "uint8, rounded to the nearest level",
        "warnings": list(dict.fromkeys(word for one in found for word in one.warnings)),
        "software": {"distgan": __version__, "git": git_state(), "torch": torch.__version__},
        "device": world.device.type,
        "ranks": world.size,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _by_class(real: Features, fake: Features, subject: Subject, real_names: Sequence[str]) -> tuple[dict, list[str]]:
    """Values by class, and warnings. Where both sides name their classes, those of one name are the same."""
    num_classes, words = subject.num_classes, []
    if subject.class_names and len(real_names) > real.labels.max():
        real, fake, others = share_classes(real, fake, real_names, subject.class_names)
        if not len(real.points) or not len(fake.points):
            return {}, ["the classes of the real images have other names than the generator's: no values by class"]
        if others:
            shown = ", ".join(others[:3]) + " ..." * (len(others) > 3)
            words = [f"values by class are without {len(others)} that one side alone names: {shown}"]
    elif real.labels.max() >= num_classes:
        last, known = int(real.labels.max()), f"classes 0 to {num_classes - 1}"
        return {}, [f"eval.reference has class {last}, and the generator has {known}: no values by class"]
    kid = {number: _number(value) for number, value in class_distances(real, fake, num_classes).items()}
    accuracies = probe_accuracies(real, fake, num_classes)
    return {"kid": kid} | {name: _number(value) for name, value in accuracies.items()}, words


def _memorization(
    real: Reference,
    real_images: ShardImages | None,
    fake: Extracted,
    images: ImageSet,
    unseen: Extracted | None,
    path: Path | None,
) -> dict:
    """Nearness to training images; an image of the closest pairs; the copies among them, counted."""
    near = nearness(real.features.points, fake.features.points, unseen.features.points if unseen else None)
    typical = float(near.unseen.median())
    num_copies = 0
    for i in (near.distance <= 1e-3 * typical).nonzero()[:, 0].tolist():  # the others cannot be equal
        pair = _pixels(images, fake.numbers[i]), _pixels(real_images, real.numbers[int(near.nearest[i])])
        num_copies += np.array_equal(*pair)
    found = {name: _number(value) for name, value in near.values().items()} | {
        "exact_copies": num_copies,
        "compared_with": "held-out images" if unseen else "training images, each to the nearest of the others",
        "num_training": len(real.numbers),
        "whole_training_set": len(real.numbers) == real.features.gaussian.num,
    }
    if path is not None:
        pairs = near.closest(PAIRS)
        pictures = [
            picture
            for i, j in pairs
            for picture in (_pixels(images, fake.numbers[i]), _pixels(real_images, real.numbers[j]))
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        found["picture"] = str(path.with_suffix(".closest.png"))
        image_grid.save_png(Path(found["picture"]), image_grid.grid(pictures, 2 * COLUMNS))
    return found


def _pixels(images: ImageSet, number: int) -> np.ndarray:
    return images.read(np.array([number])).pixels[0]


def _folder(subject: Subject, options: Options) -> Path | None:
    """Where the report goes: of a run's checkpoint, next to the run's other files."""
    if options.out:
        return Path(options.out).parent
    return Path(subject.origin["path"]) / "evaluations" if subject.is_generated else None  # images are not ours


def _require_writable(folder: Path) -> None:
    """Told before hours of work, not after them."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise MachineError(f"{existing} cannot be written: name another place for the report by --out")


def _place(folder: Path | None, subject: Subject, report: dict) -> Path | None:
    """The report of a run's checkpoint by what was measured; one of the same measurement is replaced, no other."""
    if folder is None:
        return None
    checkpoint, extractor = subject.origin.get("checkpoint", "export"), report["extractor"]["name"]
    name = f"{checkpoint}-{extractor}-{report['num_generated']}"
    paths = (folder / f"{name}{end}.json" for end in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
    return next(path for path in paths if not path.exists() or asked_of(path) == report["asked"])


def asked_of(path: Path) -> dict | None:
    """`asked_for` of a report; None where it is corrupt, or is none."""
    try:
        return json.loads(path.read_text())["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, report: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise MachineError(f"the report {path} could not be written: {error.strerror or error}") from None


def table(report: dict) -> list[str]:
    """Lines of a report for a person."""
    rows = [("", "value", "sd", "standard error")]
    rows += [(name, *(_short(v[k]) for k in ("mean", "sd", "standard_error"))) for name, v in report["values"].items()]
    classes, memorization = report.get("classes", {}), report.get("memorization", {})
    rows += [(name, _short(classes[name]), "", "") for name in classes if name.startswith("probe")]
    rows += [(f"kid of class {name}", _short(value), "", "") for name, value in classes.get("kid", {}).items()]
    rows += [
        (name, _short(memorization[name]), "", "") for name in ("nearness", "very_near", "exact_copies") if memorization
    ]
    lines = formatting.table(rows, "<>>>")
    seeds = f", seeds {', '.join(map(str, report['seeds']))}" if report["seeds"] else ""
    of = report["reference"]
    against = of["file"] or f"{of['num_real']:,} real ones"
    lines.append(f"{report['num_generated']:,} images{seeds} against {against}, by {report['extractor']['identity']}")
    lines += [f"warning: {word}" for word in report["warnings"]]
    lines.append(
        f"report: {report['file']}" if "file" in report else "no report was written: --out FILE.json names one"
    )
    return lines


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _number(value: float) -> float | None:
    """As JSON has it, which knows no NaN."""
    return value if np.isfinite(value) else None


def _no_poll() -> None:
    """The command is ended by its signals, as any other."""
