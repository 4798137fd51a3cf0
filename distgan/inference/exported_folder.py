"""The folder that `distgan export` writes: weights, and a description of the generator and of its origin."""

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from distgan.config import plugins
from distgan.config.load import require_own_names
from distgan.errors import DataError
from distgan.inference.trained_generator import Spec, TrainedGenerator
from distgan.models import networks
from distgan.storage import checkpoint
from distgan.storage.checkpoint import machine_memory
from distgan.storage.untrusted import MAX_JSON_BYTES, Count, Name, Sha256, json_of, parse, read
from distgan.version import __version__

log = logging.getLogger("distgan")

FORMAT = "distgan generator 2"
READABLE = ("distgan generator 1", FORMAT)  # the first has no channels, dtype, range and alpha: colors in 8 bits
WEIGHTS, DESCRIPTION = checkpoint.EXPORT  # names of its files


class _Weights(TypedDict):
    sha256: Sha256


class _Loss(TypedDict):
    name: Name


class _Train(TypedDict):
    seed: int


class _Ema(TypedDict):
    half_life: float | list[float]


class _Settings(TypedDict):
    """The settings of the training that the model card of an export shows."""

    loss: _Loss
    train: _Train
    ema: _Ema


class _Plugins(TypedDict, total=False):
    plugins: dict[str, Sha256]


class _Origin(_Plugins):
    run: Name
    checkpoint: Name
    sha256: Name
    images: Count
    config: _Settings


class _OfAnyFormat(TypedDict):
    format: Name


class _Exported(_OfAnyFormat):
    """The file DESCRIPTION of an exported generator."""

    generator: Spec
    weights: _Weights
    origin: _Origin


def is_exported(folder: Path) -> bool:
    """Return whether a folder is an exported generator."""
    return (folder / DESCRIPTION).exists()


def describe(G: TrainedGenerator, weights: bytes | None = None) -> dict:
    """Return the description of a generator as JSON values; with the bytes of its weights file, their hash too."""
    file = {} if weights is None else {"weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()}}
    return {
        "format": FORMAT,
        "made_by": f"distgan {__version__}",
        "generator": asdict(G.spec),
        **file,
        "origin": G.origin,
    }


def read_exported(folder: Path) -> tuple[Spec, dict[str, Tensor], dict]:
    """Read an exported folder: the generator's spec, its weights by name, and its origin.

    Raises:
        DataError: A file is missing or corrupt, or of another format or revision.
        ConfigError: This version does not have the family, or its settings have other names.
    """
    where = f"{folder}: {DESCRIPTION} is not one that `distgan export` wrote"
    try:
        value = json_of(read(folder / DESCRIPTION, MAX_JSON_BYTES, follow_links=False), where)
        data = read(folder / WEIGHTS, machine_memory(), follow_links=False)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {Path(error.filename).name} is missing") from None
    found_format = parse(_OfAnyFormat, value, where)["format"]
    if found_format not in READABLE:
        raise DataError(f"{folder}: {DESCRIPTION} is of format {found_format!r}; this version reads {FORMAT!r}")
    exported = parse(_Exported, value, where)
    spec, expected, origin = exported["generator"], exported["weights"]["sha256"], exported["origin"]
    try:
        spec.image  # noqa: B018 (which it raises for)
    except ValueError as error:
        raise DataError(f"{where}: generator: {error}") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise DataError(f"{folder}: {WEIGHTS} is not what was written ({len(data)} bytes): export it again")
    trained_with = origin.get("plugins", {})
    networks.require_family(spec.family, folder, plugins.how_to_load(trained_with, None))
    for line in plugins.others(trained_with):
        log.warning(f"warning: {folder}: {line}")
    networks.require_revision(spec.family, spec.revision, folder)
    require_own_names(dict(origin["config"]), f"{folder}: {DESCRIPTION}")
    return spec, checkpoint.tensors_of(data, folder / WEIGHTS), dict(origin)
