"""Small data sets for the tests, made by independent means: tarfile and Pillow, not the package."""

import io
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    import zstandard as zstd

__all__ = ["image_bytes", "numbered_pixels", "numbered_shard", "numbers_of", "tar_bytes", "write_shards", "zstd"]

Members = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


def tar_bytes(members: Members, format: int = tarfile.USTAR_FORMAT, **tarinfo: object) -> bytes:
    """A tar of regular files; `tarinfo` sets fields of every member, e.g. `mtime=0.5`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in tarinfo.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def image_bytes(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    """Pixels as a file of some image format."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def numbered_pixels(number: int, size: int = 16) -> np.ndarray:
    """A picture of one colour that no other number below 2^24 has; uint8 [size, size, 3]."""
    return np.full((size, size, 3), [number >> 16 & 255, number >> 8 & 255, number & 255], np.uint8)


def numbers_of(pixels: np.ndarray) -> np.ndarray:
    """The numbers of a batch of `numbered_pixels`, -1 for a picture that is none; int64 [B]."""
    numbers = pixels[:, 0, 0].astype(np.int64) @ [1 << 16, 1 << 8, 1]
    return np.where((pixels == pixels[:, :1, :1]).all(axis=(1, 2, 3)), numbers, -1)


def numbered_shard(numbers: Iterable[int], *, damaged: Iterable[int] = (), size: int = 16) -> bytes:
    """A shard of numbered PNGs with the label `number % 7`; a damaged picture is cut in the middle of its pixels."""
    members, damaged = [], set(damaged)
    for number in numbers:
        data = image_bytes(numbered_pixels(number, size))
        if number in damaged:
            data = data[: data.index(b"IDAT") + 8]
        members += [(f"{number:06d}.cls", b"%d" % (number % 7)), (f"{number:06d}.png", data)]
    return tar_bytes(members)


def write_shards(folder: Path, counts: Iterable[int], *, numbers_from: int = 0, **options: Iterable[int]) -> list[str]:
    """Numbered shards of so many samples each, numbered through; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, first = [], numbers_from
    for i, count in enumerate(counts):
        path = folder / f"{i:03d}.tar"
        path.write_bytes(numbered_shard(range(first, first + count), **options))
        paths.append(str(path))
        first += count
    return paths
