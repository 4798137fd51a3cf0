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
from typing import TypedDict

import numpy as np
import torch

from distgan.errors import DataError, MachineError
from distgan.metrics import frechet
from distgan.metrics.frechet import Gaussian
from distgan.metrics.registry import Features
from distgan.storage.array_file import ArrayFile
from distgan.storage.atomic import replacing
from distgan.storage.untrusted import Count, json_of, open_regular, parse

VERSION = 1  # of the file
TOLERANCE = 1e-4  # of a covariance that was kept as float32, in relation
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError)


class Header(TypedDict):
    """What a statistics file of ours says of itself."""

    version: int
    origin: dict[str, object]
    num: Count
    num_damaged: Count
    num_grey: Count


@dataclass
class Reference:
    """Features of real images, and what they were made of.

    Attributes:
        features: See there; always with a root.
        origin: What belongs into the key of a cache: fingerprint of the shards, resolution, extractor and so on. Empty
            for a file of another tool.
        numbers: Which images of the data set `features.points` are of; int64 [n].
        num_damaged: Images that could not be decoded, and are not in it.
        num_grey: Images without color.
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
    """The statistics of this origin, or None where there is no such file or it is corrupt."""
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
        with open_regular(path) as opened:
            if not zipfile.is_zipfile(opened):
                raise DataError(f"{path}: not a statistics file (.npz with mu and sigma)")
        with ArrayFile(path) as file:
            if not {"mu", "sigma"} <= set(file.names):
                held = ", ".join(file.names[:20])[:200] or "nothing"
                raise DataError(f"{path}: not statistics: it has {held}, but not mu and sigma")
            mean, cov = file.shape("mu"), file.shape("sigma")
            if cov != mean * 2:
                raise DataError(f"{path}: mu of shape {list(mean)} and sigma of shape {list(cov)}")
            if mean != (dim,):
                raise DataError(f"{path}: statistics of {mean} features, but {extractor} gives {dim}")
            known = _of_file(file) if "header" in file else _of_others(file)
        _require_root(known.features)
    except FileNotFoundError:
        raise DataError(f"{path}: No such file") from None
    except DAMAGED as error:
        raise DataError(f"{path}: not a statistics file (.npz with mu and sigma): {error}") from None
    for what, ours in (("extractor", extractor), ("resolution", resolution)):
        theirs = known.origin.get(what)
        if theirs is not None and ours and theirs != ours:
            raise DataError(f"{path}: made with {what} {theirs}, but the other images are of {what} {ours}")
    known.file = str(path)
    return known


def _of_file(file: ArrayFile) -> Reference:
    header = parse(Header, json_of(str(file.read("header")), "header"), "header")
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']} of the file, this distgan reads {VERSION}")
    gaussian = Gaussian(header["num"], _array(file, "mu", "f8"), _array(file, "sigma", "f8"))
    points, root = _array(file, "points", "f4"), _array(file, "root", "f8")
    labels, numbers = _array(file, "labels", "i8"), _array(file, "numbers", "i8")
    (dim,), num = gaussian.mean.shape, len(points)
    fits = gaussian.cov.shape == root.shape == (dim, dim) and points.shape[1:] == (dim,) and numbers.shape == (num,)
    if not fits or labels.shape not in ((num,), (0,)):
        raise ValueError("arrays whose shapes do not go together")
    features = Features(gaussian, points, labels=labels if len(labels) else None, root=root)
    return Reference(features, header["origin"], numbers.numpy(), header["num_damaged"], header["num_grey"])


def _of_others(file: ArrayFile) -> Reference:
    """Mean and covariance of another tool, which does not tell of how many images."""
    mean, cov = (_array(file, name, "f8") for name in ("mu", "sigma"))
    num = parse(Count, int(file.read("num")) if "num" in file else 0, "num")
    return Reference(Features(Gaussian(num, mean, cov), torch.empty(0, len(mean)), root=frechet.root(cov)))


def _array(file: ArrayFile, name: str, dtype: str) -> torch.Tensor:
    """An array of finite numbers, as that type."""
    array = file.read(name)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite numbers")
    return torch.from_numpy(array.astype(dtype, copy=False))


def _require_root(features: Features) -> None:
    """Refuse a covariance that is none: `root` is symmetric, so its square is symmetric and positive semi-definite."""
    cov, root = features.gaussian.cov, features.root
    if not torch.equal(root, root.T) and not torch.allclose(root, root.T, rtol=0, atol=1e-6 * float(root.abs().max())):
        raise ValueError("root is not symmetric")
    if not (root @ root - cov).norm() <= TOLERANCE * cov.norm():
        raise ValueError("sigma is not symmetric and positive semi-definite, or root is not its square root")
