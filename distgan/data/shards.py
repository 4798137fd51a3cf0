"""Which shards there are: folders, globs, expressions, addresses and commands -> addresses of shards."""

import difflib
import glob
import hashlib
import itertools
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from distgan.data.address import is_local, local_path, public
from distgan.data.image import SUFFIXES
from distgan.errors import DataError

ARCHIVES = ("zip", "npz", "tgz", "gz", "bz2", "xz", "txz", "zst", "tzst")  # suffixes of what `pack` unpacks
LOOKED_AT = 10_000  # names in a folder without shards, to tell what it holds instead


def default_cache_dir() -> Path:
    """Where indexes and piped shards go that cannot lie beside their shards."""
    if os.environ.get("DISTGAN_CACHE"):
        return Path(os.environ["DISTGAN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distgan"


def find_shards(spec: str | Sequence[str], *, allow_pipe: bool = False, cache_dir: Path | None = None) -> list[str]:
    """Addresses of all shards that `spec` names, in its order.

    A spec is a folder (its *.tar, sorted), a glob, a WebDataset expression with braces or `::`, an address such as
    https://host/{000..099}.tar or s3://bucket/{00..99}.tar, or a list of these. `pipe:` commands run in a shell, so
    they need `allow_pipe`; what they print is kept as a file in `cache_dir`.
    """
    urls = [url for item in ([spec] if isinstance(spec, str) else spec) for url in _expand(item)]
    if not urls:
        raise DataError("data.shards is empty: name a folder, a glob or addresses of .tar shards")
    places = [os.path.realpath(local_path(url)) if is_local(url) else url for url in urls]
    for place, count in Counter(places).items():
        if count > 1:
            raise DataError(f"data.shards names {public(place)} {count} times: its samples would repeat")
    if any(url.startswith("pipe:") for url in urls):
        if not allow_pipe:
            raise DataError(
                "data.shards has a pipe: address, which runs a command of the config in a shell; "
                "set data.allow_pipe=true if you trust it"
            )
        urls = [_spool(url, cache_dir or default_cache_dir()) if url.startswith("pipe:") else url for url in urls]
    return urls


def _expand(item: str, hint: bool = True) -> list[str]:
    """The shards that one expression names; at least one, or DataError, which may hint at what was meant."""
    item = os.path.expanduser(item)
    path = local_path(item)
    if is_local(item) and os.path.isfile(path):
        return [item]
    if ("{" in item or "::" in item) and not os.path.isdir(path):
        from webdataset.shardlists import expand_urls  # imports torch, which a plain path does not need

        try:
            parts = expand_urls(item)
        except (AssertionError, ValueError) as error:  # an environment variable that is not set, a brace left open
            raise DataError(f"data.shards: {public(item)!r}: {error}") from None
        if parts != [item]:
            return [url for part in parts for url in _expand(part, hint=False)]
    if item.startswith("pipe:") or not is_local(item):
        return [item]
    found = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar") if os.path.isdir(path) else path))
    found = [path for path in found if not path.endswith(".tar.index")]  # a glob such as data/* finds ours too
    if not found:
        meant = _meant(path) if hint else ""
        raise DataError(f"data.shards: no shard matches {item!r} (seen from {os.getcwd()}){meant}")
    if special := [path for path in found if os.path.exists(path) and not os.path.isfile(path)]:
        raise DataError(f"data.shards: {special[0]} is no regular file")
    return found


def _meant(path: str) -> str:
    """What may have been meant by a path without shards, as the rest of a sentence; empty where nobody knows."""
    if os.path.isdir(path):
        files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        by_suffix = {file.rpartition(".")[2].lower(): file for file in itertools.islice(files, LOOKED_AT)}
        if not SUFFIXES.isdisjoint(by_suffix):
            return f": it holds pictures; `distgan pack {shlex.quote(path)} OUT` makes shards of them"
        archive = next((by_suffix[suffix] for suffix in ARCHIVES if suffix in by_suffix), "")
        return f"; `distgan pack {shlex.quote(archive)} OUT` makes shards of an archive" if archive else ""
    folder, name = os.path.split(os.path.normpath(path))
    beside = map(os.path.basename, glob.glob(os.path.join(glob.escape(folder), "*")))
    near = difflib.get_close_matches(name, sorted(beside), n=3)
    return f"; did you mean {' or '.join(os.path.join(folder, other) for other in near)}?" if near else ""


def _spool(url: str, cache_dir: Path) -> str:
    """The output of a `pipe:` address as a file: a stream that cannot seek is read once and kept."""
    from webdataset.gopen import gopen

    path = cache_dir / "pipes" / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        try:
            with gopen(url, "rb") as stream, open(part, "wb") as file:
                while piece := stream.read(2**20):
                    file.write(piece)
            os.replace(part, path)
        except (OSError, ValueError) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{url}: {error}") from None
    return str(path)
