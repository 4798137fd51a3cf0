"""Shards as `pack` writes them: samples appended to 000000.tar, 000001.tar ..., each up to a size."""

import hashlib
from pathlib import Path

from distgan.data import tar


class Shard:
    """A shard that is being written. Its members are what `webdataset.ShardWriter(mtime=0)` would write; see `tar`."""

    def __init__(self, path: Path) -> None:
        self._path, self._hash = path, hashlib.sha256()
        self._file = open(path, "xb")  # noqa: SIM115 (until `close`)
        self.size = self._samples = 0

    def add(self, sample: bytes) -> None:
        """Append the members of a sample."""
        self._append(sample)
        self._samples += 1

    def close(self) -> dict:
        """End the archive; returns its entry in the card."""
        self._append(tar.END)
        self._file.close()
        return {
            "name": self._path.name,
            "bytes": self.size,
            "samples": self._samples,
            "sha256": self._hash.hexdigest(),
        }

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


class ShardWriter:
    """Appends samples to 000000.tar, 000001.tar ... and starts the next before one grows over `shard_bytes`."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.done: list[dict] = []
        self._folder, self._limit = folder, shard_bytes
        self._shard: Shard | None = None

    def add(self, key: str, parts: dict[str, bytes]) -> None:
        """Append a sample to the shard at hand, or to the next one."""
        sample = tar.sample(key, parts)
        if self._shard and self._shard.size + len(sample) + len(tar.END) > self._limit:
            self.close()
        if self._shard is None:
            self._shard = Shard(self._folder / f"{len(self.done):06d}.tar")
        self._shard.add(sample)

    def close(self) -> None:
        """End the shard at hand."""
        if self._shard is not None:
            shard, self._shard = self._shard, None
            self.done.append(shard.close())
