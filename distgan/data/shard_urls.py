"""Find shards: folders, globs, expressions, addresses and commands -> addresses of shards."""

import difflib
import glob
import hashlib
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distgan.data import braces
from distgan.data.image_format import SUFFIXES
from distgan.errors import DataError
from distgan.storage.atomic import replacing
from distgan.storage.home import default_cache_dir, user_path
from distgan.storage.urls import HIDDEN_COMMAND, is_local, local_path, public

ARCHIVES = ("zip", "npz", "tgz", "gz", "bz2", "xz", "txz", "zst", "tzst")  # suffixes of what `pack` unpacks
LOOKED_AT = 10_000  # names in a folder without shards, to tell what it holds instead


def find_shards(spec: str | Sequence[str], *, allow_pipe: bool = False, cache_dir: Path | None = None) -> list[str]:
    """Return the addresses of all shards that `spec` names, in its order.

    A spec is a folder (its *.tar, sorted), a glob, a WebDataset expression with braces or `::`, an address such as
    https://host/{000..099}.tar or s3://bucket/{00..99}.tar, or a list of these. `pipe:` commands run in a shell, so
    they need `allow_pipe`; what they print is kept as a file in `cache_dir`, which is all that is read later.
    """
    urls = [url for item in ([spec] if isinstance(spec, str) else spec) for url in _expand(item)]
    if not urls:
        raise DataError("data.shards is empty: name a folder, a glob or addresses of .tar shards")
    places = [os.path.realpath(local_path(url)) if is_local(url) else url for url in urls]
    for place, count in Counter(places).items():
        if count > 1:
            raise DataError(f"data.shards names {public(place)} {count} times: its samples would repeat")
    cache = cache_dir or default_cache_dir()
    return [_piped(url, cache, allow_pipe) if url.startswith("pipe:") else url for url in urls]


def _expand(item: str, hint: bool = True) -> list[str]:
    """Return the shards that one expression names; raises DataError where there is none, perhaps with a hint."""
    if item.startswith("~"):
        item = str(user_path(item))
    path = local_path(item)
    if is_local(item) and os.path.isfile(path):
        return [item]
    if ("{" in item or "::" in item) and not os.path.isdir(path):
        try:
            parts = [part for link in item.split("::") for part in braces.expand(link)]
        except ValueError as error:
            raise DataError(f"data.shards: {public(item)!r}: {error}") from None
        if parts != [item]:
            return [url for part in parts for url in _expand(part, hint=False)]
    if item.startswith("pipe:") or not is_local(item):
        return [item]
    paths = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path))
    paths = [path for path in paths if not path.endswith(".tar.index")]  # a glob such as data/* finds ours too
    if not paths:
        meant = _meant(path) if hint else ""
        raise DataError(f"data.shards: no shard matches {item!r} (seen from {os.getcwd()}){meant}")
    if special := [path for path in paths if os.path.exists(path) and not os.path.isfile(path)]:
        raise DataError(f"data.shards: {special[0]} is not a regular file")
    return paths


def _meant(path: str) -> str:
    """Return what may have been meant by a path without shards, as the rest of a sentence; else ""."""
    if os.path.isdir(path):
        files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        by_suffix = {file.rpartition(".")[2].lower(): file for file in itertools.islice(files, LOOKED_AT)}
        if not SUFFIXES.isdisjoint(by_suffix):
            return f": it holds images; `distgan pack {shlex.quote(path)} OUT` makes shards of them"
        archive = next((by_suffix[suffix] for suffix in ARCHIVES if suffix in by_suffix), "")
        return f"; `distgan pack {shlex.quote(archive)} OUT` makes shards of an archive" if archive else ""
    folder, name = os.path.split(os.path.normpath(path))
    beside = map(os.path.basename, glob.glob(os.path.join(glob.escape(folder), "*")))
    near = difflib.get_close_matches(name, sorted(beside), n=3)
    return f"; did you mean {' or '.join(os.path.join(folder, other) for other in near)}?" if near else ""


def _piped(url: str, cache_dir: Path, allowed: bool) -> str:
    """Return the output of a `pipe:` address as a file: a stream that cannot seek is read once and kept."""
    path = cache_dir / "pipes" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"
    if path.is_file() and not path.is_symlink():
        return str(path)
    if url == HIDDEN_COMMAND:
        raise DataError(
            "data.shards: a run's records do not keep the command of a pipe: address: give data.shards again"
        )
    if not allowed:
        raise DataError(
            "data.shards has a pipe: address, which runs a command in a shell: if you trust it, write "
            "data.allow_pipe=true on the command line, or DISTGAN_ALLOW_PIPE=1 in the environment (`check` runs none)"
        )
    from webdataset.gopen import gopen

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, open(part, "wb") as file, gopen(url, "rb") as stream:
            while piece := stream.read(2**20):
                file.write(piece)
    except (OSError, ValueError) as error:  # whose own text shows the command, unless it is the system's
        reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        raise DataError(f"data.shards: the command of a {public('pipe:')} address failed{reason}") from None
    return str(path)
