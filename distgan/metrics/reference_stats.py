"""What is known of the real images, kept in a file so that it is made only once.

The file is an .npz without pickles: it holds `mu` and `sigma` under the names that other tools read, and more of its
own. Files of those tools are read too; what they do not tell (network, resolution, number of images) is then unknown.
"""

import contextlib
import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from distgan.errors import DataError, MachineError
from distgan.metrics import frechet
from distgan.metrics.frechet import Gaussian
from distgan.metrics.registry import Features
from distgan.storage.array_file import ArrayFile
from distgan.storage.atomic import replacing

VERSION = 1  # of the file
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError)


@dataclass
class Reference:
    """Features of real images, and what they were made of.

    Attributes:
        features: See there; always with a root.
        origin: What belongs into the key of a cache: fingerprint of the shards, resolution, extractor and so on. Empty
            for a file of another tool.
        numbers: Which images of the data set `features.points` are of; int64 [n].
        num_damaged: Images that could not be decoded, and are not in it.
        num_grey: Images without colour.
        file: Where it was read from, for statistics that a user named.
    """

    features: Features
    origin: dict[str, object] = field(default_factory=dict)
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_damaged: int = 0
    num_grey: int = 0
    file: str = ""

    @property
    def has_points(self) -> bool:
        return len(self.features.points) > 0

    @property
    def key(self) -> str:
        return key_of(self.origin) if self.origin else f"file {Path(self.file).name}"


def key_of(origin: dict[str, object]) -> str:
    """A short name of an origin."""
    told = json.dumps({"version": VERSION, **origin}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def save(path: Path, known: Reference) -> None:
    """Write a statistics file, whole or not at all. Raises MachineError."""
    features = known.features
    header = {"version": VERSION, "origin": known.origin, "num": features.gaussian.num}
    header |= {"num_damaged": known.num_damaged, "num_grey": known.num_grey}
    labels = np.empty(0, np.int64) if features.labels is None else features.labels.numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, open(part, "wb") as file:
            np.savez(
                file,
                mu=features.gaussian.mean.numpy(),
                sigma=features.gaussian.cov.numpy(),
                root=features.root.numpy(),
                points=features.points.numpy(),
                labels=labels,
                numbers=known.numbers,
                header=np.array(json.dumps(header)),
            )
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror or error}") from None


def load_cached(path: Path, origin: dict[str, object]) -> Reference | None:
    """The statistics of this origin, or None where there is no such file or it is damaged."""
    with contextlib.suppress(*DAMAGED, DataError), ArrayFile(path) as file:
        found = _of_file(file)
        return found if found.origin == origin else None
    return None


def load_statistics(path: Path, extractor: str, dim: int, resolution: int) -> Reference:
    """The statistics file that a user named, if it fits.

    Args:
        extractor: Identity of the extractor that the other side's features are of.
        resolution: Of the images of the other side; 0 where it is not known yet.

    Raises:
        DataError: There is none, it cannot be read, or it is of another extractor, resizer or resolution.
    """
    try:
        if not zipfile.is_zipfile(path):
            what = "not a statistics file (.npz with mu and sigma)" if path.exists() else "No such file"
            raise DataError(f"{path}: {what}")
        with ArrayFile(path) as file:
            if not {"mu", "sigma"} <= set(file.names):
                held = ", ".join(file.names[:20])[:200] or "nothing"
                raise DataError(f"{path}: no statistics: it has {held}, but not mu and sigma")
            mean, cov = file.shape("mu"), file.shape("sigma")
            if cov != mean * 2:
                raise DataError(f"{path}: mu of shape {list(mean)} and sigma of shape {list(cov)}")
            if mean != (dim,):
                raise DataError(f"{path}: statistics of {mean} features, but {extractor} gives {dim}")
            known = _of_file(file) if "header" in file else _of_others(file)
    except DAMAGED as error:
        raise DataError(f"{path}: not a statistics file (.npz with mu and sigma): {error}") from None
    for what, ours in (("extractor", extractor), ("resolution", resolution)):
        theirs = known.origin.get(what)
        if theirs is not None and ours and theirs != ours:
            raise DataError(f"{path}: made with {what} {theirs}, but the other images are of {what} {ours}")
    known.file = str(path)
    return known


def _of_file(file: ArrayFile) -> Reference:
    header = json.loads(str(file.read("header")))
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']} of the file, this distgan reads {VERSION}")
    gaussian = Gaussian(header["num"], torch.from_numpy(file.read("mu")), torch.from_numpy(file.read("sigma")))
    labels = torch.from_numpy(file.read("labels"))
    points, root = torch.from_numpy(file.read("points")), torch.from_numpy(file.read("root"))
    features = Features(gaussian, points, labels=labels if len(labels) else None, root=root)
    return Reference(features, header["origin"], file.read("numbers"), header["num_damaged"], header["num_grey"])


def _of_others(file: ArrayFile) -> Reference:
    """Mean and covariance of another tool, which does not tell of how many images."""
    mean, cov = (torch.from_numpy(file.read(name).astype(np.float64)) for name in ("mu", "sigma"))
    if not (mean.isfinite().all() and cov.isfinite().all()):
        raise ValueError("mu or sigma hold values that are not finite")
    num = int(file.read("num")) if "num" in file else 0
    return Reference(Features(Gaussian(num, mean, cov), torch.empty(0, len(mean)), root=frechet.root(cov)))
