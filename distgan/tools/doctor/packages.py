"""Check Python, and the packages that distgan needs."""

import platform
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from distgan.storage.run_dir import PACKAGES
from distgan.tools.doctor.finding import FAIL, OK, WARN, Finding
from distgan.version import __version__


def python() -> Iterator[Finding]:
    """Look at this Python and at distgan itself."""
    where = Path(__file__).parents[2]
    yield Finding("python", OK, f"{platform.python_version()} on {platform.platform()}, {sys.executable}")
    yield Finding("distgan", OK, f"{__version__} in {where}")


def packages() -> Iterator[Finding]:
    """Compare the packages that are installed with those that distgan asks for."""
    try:
        wanted = [line for line in metadata.requires("distgan") or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:  # run from a copy of its folder
        wanted = list(PACKAGES)
    versions, missing, other = [], [], []
    for line in wanted:
        name, fits, is_needed = _requirement(line)
        if not is_needed:
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        versions.append(f"{name} {version}")
        if not fits(version):
            other.append(f"{name} {version}, where {line.split(';')[0].strip()} is required")
    if missing:
        yield Finding("packages", FAIL, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    if other:
        yield Finding("packages", WARN, "; ".join(other), "pip install -U distgan")
    yield Finding("packages", OK, ", ".join(versions))


def _requirement(line: str) -> tuple[str, Callable[[str], bool], bool]:
    """Return the name in a line such as "torch>=2.10", whether a version suits it, and whether it is needed.

    The last is for lines that speak of other versions of Python.
    """
    try:
        from packaging.requirements import Requirement  # accelerate brings it
    except ImportError:
        return re.split(r"[^\w.-]", line)[0], lambda version: True, ";" not in line
    wanted = Requirement(line)
    is_needed = wanted.marker is None or wanted.marker.evaluate()
    return wanted.name, lambda version: wanted.specifier.contains(version, prereleases=True), is_needed
