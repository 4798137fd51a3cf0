"""Folders of the user who runs this: home, and the cache."""

import functools
import logging
import os
import stat
import tempfile
from pathlib import Path

from distgan.errors import ConfigError, MachineError

log = logging.getLogger("distgan")


def user_path(path: str | Path) -> Path:
    """Return a path in which ~ is replaced by the home folder. Raises ConfigError where that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: no such home folder: set HOME, or write the path without ~") from None


def default_cache_dir() -> Path:
    """Return where indexes, piped shards, statistics and weights go that have no other place.

    Raises:
        MachineError: the user has no home, and the folder in its stead is somebody else's.
    """
    if os.environ.get("DISTGAN_CACHE"):
        return user_path(os.environ["DISTGAN_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "distgan"
    try:
        return Path.home() / ".cache" / "distgan"
    except RuntimeError:  # no HOME, and a user without an entry in the system's list
        return _cache_without_home(Path(tempfile.gettempdir()) / f"distgan-{os.getuid()}")


@functools.cache
def _cache_without_home(folder: Path) -> Path:
    """Make a folder among the temporary files, where others write too; refuses one that others can have prepared."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise MachineError(f"cache {folder}: {error.strerror}: set DISTGAN_CACHE to another folder") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise MachineError(f"cache {folder}: others may write there: set DISTGAN_CACHE to a folder of your own")
    log.warning(f"this user has no home folder: the cache is {folder}; DISTGAN_CACHE names another")
    return folder
