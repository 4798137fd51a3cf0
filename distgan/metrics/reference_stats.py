"""Statistics of real images, kept in a file so that they are computed only once.

The file is an .npz without pickles: it holds `mu` and `sigma` under the names that other tools read, and arrays of its
own. Files of those tools are read too; what they do not hold (network, resolution, number of images) is then unknown.
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
TOLERANCE = 1e-4  # relative, of a covariance that was stored as float32
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError)


class Header(TypedDict):
    """The header of a statistics file of ours."""

    version: int
    origin: dict[str, object]
    num: Count
    num_corrupt: Count
    num_gray: Count


@dataclass
class Reference:
    """Features of real images, and their origin.

    Attributes:
        features: The features, always with a root.
        origin: The values that make the key of a cache: fingerprint of the shards, resolution, extractor and so on.
            Empty for a file of another tool.
        numbers: Numbers in the data set of the images of `features.points`; int64 [n].
        num_corrupt: Number of images that could not be decoded and are left out.
        num_gray: Number of images without color.
        file: The file that was read, for statistics that a user named.
    """

    features: Features
    origin: dict[str, object] = field(default_factory=dict)
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_corrupt: int = 0
    num_gray: int = 0
    file: str = ""

    @property
    def has_points(self) -> bool:
        """True if it holds features, not only their Gaussian."""
        return len(self.features.points) > 0

    @property
    def root(self) -> torch.Tensor:
        """Square root of the covariance."""
        assert self.features.root is not None
        return self.features.root

    @property
    def key(self) -> str:
        """Short name of the origin."""
        return key_of(self.origin) if self.origin else f"file {Path(self.file).name}"


def key_of(origin: dict[str, object]) -> str:
    """Return a short name of an origin."""
    text = json.dumps({"version": VERSION, **origin}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def save(path: Path, reference: Reference) -> None:
    """Write a statistics file, completely or not at all. Raises MachineError."""
    features = reference.features
    header = {"version": VERSION, "origin": reference.origin, "num": features.gaussian.num}
    header |= {"num_corrupt": reference.num_corrupt, "num_gray": reference.num_gray}
    labels = np.empty(0, np.int64) if features.labels is None else features.labels.numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, open(part, "wb") as file:
            np.savez(
                file,
                mu=features.gaussian.mean.numpy(),
                sigma=features.gaussian.cov.numpy(),
                root=reference.root.numpy(),
                points=features.points.numpy(),
                labels=labels,
                numbers=reference.numbers,
                header=np.array(json.dumps(header)),
            )
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror or error}") from None


def load_cached(path: Path, origin: dict[str, object]) -> Reference | None:
    """Return the statistics of an origin, None if there is no such file or it is corrupt."""
    with contextlib.suppress(*DAMAGED, DataError), ArrayFile(path) as file:
        reference = _from_our_file(file)
        return reference if reference.origin == origin else None
    return None


def load_statistics(path: Path, extractor: str, dim: int, resolution: int | list[int]) -> Reference:
    """Read a statistics file that a user named.

    Args:
        extractor: Identity of the extractor of the other side's features.
        resolution: Resolution of the other side's images; 0 if it is not known yet.

    Raises:
        DataError: There is none, it cannot be read, or it is of another extractor, resizer or resolution.
    """
    try:
        with open_regular(path) as opened:
            if not zipfile.is_zipfile(opened):
                raise DataError(f"{path}: not a statistics file (.npz with mu and sigma)")
        with ArrayFile(path) as file:
            if not {"mu", "sigma"} <= set(file.names):
                names = ", ".join(file.names[:20])[:200] or "nothing"
                raise DataError(f"{path}: not statistics: it has {names}, but not mu and sigma")
            mean, cov = file.shape("mu"), file.shape("sigma")
            if cov != mean * 2:
                raise DataError(f"{path}: mu of shape {list(mean)} and sigma of shape {list(cov)}")
            if mean != (dim,):
                raise DataError(f"{path}: statistics of {mean} features, but {extractor} gives {dim}")
            reference = _from_our_file(file) if "header" in file else _from_other_tool(file)
        _require_root(reference)
    except FileNotFoundError:
        raise DataError(f"{path}: No such file") from None
    except DAMAGED as error:
        raise DataError(f"{path}: not a statistics file (.npz with mu and sigma): {error}") from None
    for what, ours in (("extractor", extractor), ("resolution", resolution)):
        theirs = reference.origin.get(what)
        if theirs is not None and ours and theirs != ours:
            raise DataError(f"{path}: made with {what} {theirs}, but the other images are of {what} {ours}")
    reference.file = str(path)
    return reference


def _from_our_file(file: ArrayFile) -> Reference:
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
    return Reference(features, header["origin"], numbers.numpy(), header["num_corrupt"], header["num_gray"])


def _from_other_tool(file: ArrayFile) -> Reference:
    """Read mean and covariance of another tool, whose file need not have the number of images."""
    mean, cov = (_array(file, name, "f8") for name in ("mu", "sigma"))
    num = parse(Count, int(file.read("num")) if "num" in file else 0, "num")
    return Reference(Features(Gaussian(num, mean, cov), torch.empty(0, len(mean)), root=frechet.root(cov)))


def _array(file: ArrayFile, name: str, dtype: str) -> torch.Tensor:
    """Read an array of finite numbers as a type. Raises ValueError."""
    array = file.read(name)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite numbers")
    return torch.from_numpy(array.astype(dtype, copy=False))


def _require_root(reference: Reference) -> None:
    """Refuse a matrix that is not a covariance, the square of a symmetric root. Raises ValueError."""
    cov, root = reference.features.gaussian.cov, reference.root
    if not torch.equal(root, root.T) and not torch.allclose(root, root.T, rtol=0, atol=1e-6 * float(root.abs().max())):
        raise ValueError("root is not symmetric")
    if not (root @ root - cov).norm() <= TOLERANCE * cov.norm():
        raise ValueError("sigma is not symmetric and positive semi-definite, or root is not its square root")
