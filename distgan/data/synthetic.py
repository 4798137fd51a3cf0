"""Made-up images as shards, for measurements on a machine that has no data yet."""

import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from distgan.data import tar

SHARDS, DIFFERENT = 4, 200


def write_shards(folder: Path, num: int, side: int, classes: int = 10) -> None:
    """Write shards of `num` JPEGs with class labels in turn; the same bytes at every call."""
    folder.mkdir(parents=True)
    files = jpegs(num, side)
    for shard in range(SHARDS):
        with open(folder / f"{shard:03d}.tar", "wb") as file:
            for i, data in enumerate(files[shard::SHARDS]):
                label = (shard + SHARDS * i) % classes
                for suffix, part in (("cls", b"%d" % label), ("jpg", data)):
                    file.write(tar.header(f"{shard:03d}{i:06d}.{suffix}", len(part)))
                    file.write(part + b"\0" * (-len(part) % tar.BLOCK))
            file.write(tar.END)


def jpegs(num: int, side: int) -> list[bytes]:
    """Return random walks in color with some noise, as compressible as photographs; 200 different ones."""
    rng, files = np.random.default_rng(0), []
    for _ in range(min(num, DIFFERENT)):
        walk = rng.normal(size=(side, side, 3)).cumsum(0).cumsum(1)
        walk -= walk.min((0, 1))
        noisy = 230 * walk / walk.max((0, 1)) + rng.normal(scale=6, size=walk.shape)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return list(itertools.islice(itertools.cycle(files), num))
