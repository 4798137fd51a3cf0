"""Made-up images as shards, for measurements on a machine that has no data yet."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from distgan.data import image_file, tar
from distgan.image_spec import ImageSpec

SHARDS, DIFFERENT = 4, 200


def write_shards(folder: Path, num: int, image: ImageSpec, classes: int = 10) -> None:
    """Write shards of `num` images with class labels in turn, colors as JPEGs; the same bytes at every call."""
    folder.mkdir(parents=True)
    name = "jpg" if image.is_rgb8 else image_file.suffix(image)
    files = jpegs(num, image.height, image.width) if image.is_rgb8 else list(_files(num, image))
    for shard in range(SHARDS):
        with open(folder / f"{shard:03d}.tar", "wb") as file:
            for i, data in enumerate(files[shard::SHARDS]):
                label = (shard + SHARDS * i) % classes
                for suffix, part in (("cls", b"%d" % label), (name, data)):
                    file.write(tar.header(f"{shard:03d}{i:06d}.{suffix}", len(part)))
                    file.write(part + b"\0" * (-len(part) % tar.BLOCK))
            file.write(tar.END)


def jpegs(num: int, height: int, width: int) -> list[bytes]:
    """Return random walks in color with some noise, as compressible as photographs; 200 different ones."""
    files = []
    for levels in _walks(min(num, DIFFERENT), (height, width, 3)):
        out = io.BytesIO()
        Image.fromarray(levels.astype(np.uint8)).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return list(itertools.islice(itertools.cycle(files), num))


def _files(num: int, image: ImageSpec) -> Iterator[bytes]:
    """Yield the files of images of any kind."""
    files = []
    for levels in _walks(min(num, DIFFERENT), image.shape):
        values = image.low + levels / 255 * (image.high - image.low)
        files.append(image_file.to_bytes(values.astype(image.dtype), image))
    return itertools.islice(itertools.cycle(files), num)


def _walks(num: int, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Yield random walks with some noise, 0..255, float64 [H, W, C]."""
    rng = np.random.default_rng(0)
    for _ in range(num):
        walk = rng.normal(size=shape).cumsum(0).cumsum(1)
        walk -= walk.min((0, 1))
        yield (230 * walk / walk.max((0, 1)) + rng.normal(scale=6, size=walk.shape)).clip(0, 255)
