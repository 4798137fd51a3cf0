"""The report of an evaluation: its values with all that makes them comparable, as a JSON file and as a table."""

import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from distgan.data import image_grid
from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.image_format import CorruptImage
from distgan.distributed.process_group import World
from distgan.errors import DataError, MachineError
from distgan.evaluation.image_sets import ImageSet, ShardImages
from distgan.evaluation.measure import ExtractedFeatures, Measurement
from distgan.evaluation.target import Target
from distgan.metrics.condition_probe import probe_conditions
from distgan.metrics.extractors import Extractor
from distgan.metrics.memorization import nearness
from distgan.metrics.per_class import class_distances, probe_accuracies, share_classes
from distgan.metrics.reference_stats import Reference
from distgan.metrics.registry import Features, value_name
from distgan.storage import formatting
from distgan.storage.atomic import replace_file
from distgan.storage.run_dir import git_state
from distgan.storage.urls import public
from distgan.version import __version__

PAIRS, COLUMNS = 24, 6  # of the image of the closest pairs


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `distgan evaluate`.

    Attributes:
        seeds: Number of evaluations, each with other latents, whose values are averaged.
        out: File of the report; empty for one in the run's evaluations/.
        statistics: File for the statistics of the real images; empty for none.
        holdout: Shards that were not trained on, for `memorization`.
        memorization: Whether to search for copies of training images.
    """

    seeds: int = 3
    out: str = ""
    statistics: str = ""
    holdout: str = ""
    memorization: bool = False


def measurement_key(overrides: Sequence[str], options: EvaluateOptions) -> dict:
    """Return what two measurements of the same images must share to be the same measurement, as JSON values."""
    return {
        "settings": [public(text) for text in overrides],
        "seeds": options.seeds,
        "holdout": public(options.holdout),
        "memorization": options.memorization,
    }


def read_measurement_key(path: Path) -> dict | None:
    """Return `measurement_key` of a report's file; None if it is corrupt, or not a report."""
    try:
        return json.loads(path.read_text())["asked"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass
class Evaluation:
    """The measurements of a target.

    Attributes:
        reference: Statistics of the real images; None on ranks other than 0.
        real_images: The real images; None if eval.reference is a file of statistics.
        seeds: Seeds of the generated images, one for images that exist.
        measured: The values for each seed; the last one has features on rank 0.
        images: The images of the last seed.
        unseen: Held-out images, if memorization is measured against some.
        warnings: Warnings about classes that have no values.
    """

    subject: Target
    extractor: Extractor
    reference: Reference | None
    real_images: ShardImages | None
    seeds: list[int]
    measured: list[Measurement]
    images: ImageSet
    unseen: ExtractedFeatures | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def real(self) -> Reference:
        """Return statistics of the real images, on rank 0."""
        assert self.reference is not None
        return self.reference

    @property
    def extracted(self) -> ExtractedFeatures:
        """Return the numbers of images of the last seed."""
        return self.measured[-1].extracted

    @property
    def features(self) -> Features:
        """Return features of the images of the last seed, on rank 0."""
        assert self.extracted.features is not None
        return self.extracted.features


def make_report(evaluation: Evaluation, world: World, asked: dict) -> dict:
    """Return the report as JSON values, without memorization; on rank 0."""
    subject, extractor, real = evaluation.subject, evaluation.extractor, evaluation.real
    warnings = [warning for measured in evaluation.measured for warning in measured.warnings]
    classes, class_warnings = _by_class(evaluation, world.device)
    conditions, condition_warnings = _by_condition(evaluation, world.device)
    report = {
        "asked": asked,
        "values": _values(evaluation),
        "subject": subject.origin,
        "num_generated": evaluation.measured[0].extracted.num,
        "seeds": evaluation.seeds if subject.is_generated else None,
        "reference": {
            "key": real.key,
            "num_real": real.features.gaussian.num or None,
            "num_features_kept": len(real.features.points),
            "num_corrupt": real.num_corrupt,
            "file": real.file or None,
            **real.origin,
        },
        "extractor": {"name": extractor.name, "identity": extractor.identity, "dtype": "float32", "tf32": False},
        "pixels": "uint8, rounded to the nearest level",
        "warnings": [*dict.fromkeys(warnings), *evaluation.warnings, *class_warnings, *condition_warnings],
        "software": {"distgan": __version__, "git": git_state(), "torch": torch.__version__},
        "device": world.device.type,
        "ranks": world.size,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return report | ({"classes": classes} if classes else {}) | ({"conditions": conditions} if conditions else {})


def _values(evaluation: Evaluation) -> dict:
    """Return mean, standard deviation and standard error over the seeds of each value, by its name."""
    measured, values = evaluation.measured, {}
    for name in measured[0].values:
        per_seed = [one.values[name][0] for one in measured]
        errors = [one.values[name][1] for one in measured]
        whole = evaluation.real_images is not None
        key = value_name(name, evaluation.extractor, measured[0].extracted.num, whole)
        values[key] = {
            "mean": _number(float(np.mean(per_seed))),
            "sd": _number(float(np.std(per_seed, ddof=1))) if len(per_seed) > 1 else None,
            "standard_error": _number(float(np.mean(errors))),
            "per_seed": [_number(value) for value in per_seed],
        }
    return values


def _by_class(evaluation: Evaluation, device: torch.device) -> tuple[dict, list[str]]:
    """Return values by class, and warnings. If both sides name their classes, those of one name are the same."""
    subject, num_classes = evaluation.subject, evaluation.subject.num_classes
    if not num_classes or evaluation.extracted.num_nonfinite:
        return {}, []
    real, fake = evaluation.real.features.to(device), evaluation.features.to(device)
    if real.labels is None or fake.labels is None:
        return {}, []
    reals, warnings = evaluation.real_images, []
    real_names = reals.dataset.class_names if reals is not None and subject.is_generated else []
    last = int(real.labels.max())
    if subject.class_names and len(real_names) > last:
        real, fake, others = share_classes(real, fake, real_names, subject.class_names)
        if not len(real.points) or not len(fake.points):
            return {}, ["the classes of the real images have other names than the generator's: no values by class"]
        if others:
            shown = ", ".join(others[:3]) + " ..." * (len(others) > 3)
            warnings = [f"values by class are without {len(others)} that one side alone names: {shown}"]
    elif last >= num_classes:
        classes = f"classes 0 to {num_classes - 1}"
        return {}, [f"eval.reference has class {last}, and the generator has {classes}: no values by class"]
    kid = {number: _number(value) for number, value in class_distances(real, fake, num_classes).items()}
    accuracies = probe_accuracies(real, fake, num_classes)
    return {"kid": kid} | {name: _number(value) for name, value in accuracies.items()}, warnings


def _by_condition(evaluation: Evaluation, device: torch.device) -> tuple[dict, list[str]]:
    """Return how well generated images show each of their conditions, and warnings."""
    known, reals = evaluation.subject.conditions, evaluation.real_images
    if known is None or evaluation.extracted.num_nonfinite:
        return {}, []
    if reals is None:
        return {}, ["eval.reference is a file of statistics, without conditions of real images: no values by condition"]
    names = tuple(known.conditions.names)
    data, settings = reals.dataset, evaluation.subject.config.data
    options = DatasetOptions(image=settings.image_key, allow_corrupt=settings.allow_corrupt, conditions=names)
    try:
        labeled = Dataset(data.urls, data.source, options)
        if labeled.num_samples != data.num_samples:
            raise DataError(f"{data.num_samples - labeled.num_samples:,} real images have no conditions")
        real_values = np.stack([labeled.condition(int(number)) for number in evaluation.real.numbers])
    except (DataError, CorruptImage) as error:
        return {}, [f"no values by condition: {error}"]
    if labeled.conditions is None or not known.conditions.is_like(labeled.conditions):
        return {}, ["the real images have conditions of other kinds than the generator's: no values by condition"]
    fake_values = known.drawn(evaluation.seeds[-1], evaluation.extracted.numbers)
    real, fake = evaluation.real.features.to(device), evaluation.features.to(device)
    found = probe_conditions(known.conditions, (real.points, real_values), (fake.points, fake_values))
    return {name: {key: _number(value) for key, value in values.items()} for name, values in found.items()}, []


def memorization(evaluation: Evaluation, path: Path | None, device: torch.device) -> dict:
    """Return the distances to training images and the number of copies, and write an image of the closest pairs.

    Args:
        device: Where the distances are computed.
        path: File of the report, next to which the image is written; None for no image.
    """
    real, fake, unseen, reals = evaluation.real, evaluation.features, evaluation.unseen, evaluation.real_images
    assert reals is not None
    unseen_points = unseen.features.points.to(device) if unseen is not None and unseen.features is not None else None
    near = nearness(real.features.points.to(device), fake.points.to(device), unseen_points)
    fake_numbers = evaluation.extracted.numbers

    def pair(generated: int, training: int) -> tuple[np.ndarray, np.ndarray]:
        return _pixels(evaluation.images, fake_numbers[generated]), _pixels(reals, real.numbers[training])

    # Only pairs at almost no distance can be equal.
    candidates = (near.distance <= 1e-3 * float(near.unseen.median())).nonzero()[:, 0].tolist()
    result = {name: _number(value) for name, value in near.values().items()} | {
        "exact_copies": sum(np.array_equal(*pair(i, int(near.nearest[i]))) for i in candidates),
        "compared_with": "held-out images" if unseen else "training images, each to the nearest of the others",
        "num_training": len(real.numbers),
        "whole_training_set": len(real.numbers) == real.features.gaussian.num,
    }
    if path is not None:
        tiles = [tile for i, j in near.closest(PAIRS) for tile in pair(i, j)]
        target = path.with_suffix(".closest.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        result["picture"] = str(target)
        image_grid.save_png(target, image_grid.grid(tiles, 2 * COLUMNS))
    return result


def _pixels(images: ImageSet, number: int) -> np.ndarray:
    return images.read(np.array([number])).pixels[0].permute(1, 2, 0).cpu().numpy()


def report_folder(subject: Target, options: EvaluateOptions) -> Path | None:
    """Return the folder of the report, of a run's checkpoint the run's evaluations/; None for images that exist."""
    if options.out:
        return Path(options.out).parent
    return Path(str(subject.origin["path"])) / "evaluations" if subject.is_generated else None


def require_writable(folder: Path) -> None:
    """Raise MachineError before hours of work if the report could not be written after them."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise MachineError(f"{existing} cannot be written: name another place for the report by --out")


def report_path(subject: Target, options: EvaluateOptions, report: dict) -> Path | None:
    """Return the file of a report; a run's checkpoint has one for each measurement, which replaces the last same one.

    It is None for images that exist, unless the options name one.
    """
    if options.out:
        return Path(options.out)
    folder = report_folder(subject, options)
    if folder is None:
        return None
    checkpoint, extractor = subject.origin.get("checkpoint", "export"), report["extractor"]["name"]
    name = f"{checkpoint}-{extractor}-{report['num_generated']}"
    paths = (folder / f"{name}{end}.json" for end in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
    return next(path for path in paths if not path.exists() or read_measurement_key(path) == report["asked"])


def write_report(path: Path, report: dict) -> None:
    """Write a report completely or not at all. Raises MachineError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise MachineError(f"the report {path} could not be written: {error.strerror or error}") from None


def table(report: dict) -> list[str]:
    """Return a report as human-readable lines."""
    rows = [("", "value", "sd", "standard error")]
    rows += [(name, *(_short(v[k]) for k in ("mean", "sd", "standard_error"))) for name, v in report["values"].items()]
    classes, memorization = report.get("classes", {}), report.get("memorization", {})
    rows += [(name, _short(classes[name]), "", "") for name in classes if name.startswith("probe")]
    rows += [
        (f"{key} of {name}", _short(value), "", "")
        for name, values in report.get("conditions", {}).items()
        for key, value in values.items()
    ]
    rows += [(f"kid of class {name}", _short(value), "", "") for name, value in classes.get("kid", {}).items()]
    rows += [
        (name, _short(memorization[name]), "", "") for name in ("nearness", "very_near", "exact_copies") if memorization
    ]
    lines = formatting.table(rows, "<>>>")
    seeds = f", seeds {', '.join(map(str, report['seeds']))}" if report["seeds"] else ""
    reference = report["reference"]
    against = reference["file"] or f"{reference['num_real']:,} real ones"
    lines.append(f"{report['num_generated']:,} images{seeds} against {against}, by {report['extractor']['identity']}")
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    lines.append(
        f"report: {report['file']}" if "file" in report else "no report was written: --out FILE.json names one"
    )
    return lines


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _number(value: float) -> float | None:
    """Return a value for JSON, which has no NaN."""
    return value if np.isfinite(value) else None
