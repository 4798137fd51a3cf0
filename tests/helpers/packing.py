"""Folders and archives to pack, and what webdataset reads from the result."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image
from shards import image_bytes, numbered_pixels, numbers_of, tar_bytes, zstd

Files = Mapping[str, bytes]
Sample = tuple[int, int]  # number of the picture, and label; -1 without one


def png(number: int) -> bytes:
    return image_bytes(numbered_pixels(number))


def folder(path: Path, files: Files) -> str:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return str(path)


def archive(path: Path, files: Files) -> str:
    """The files as an archive of the kind that the name tells."""
    compress = {"gz": gzip, "tgz": gzip, "bz2": bz2, "xz": lzma, "txz": lzma, "zst": zstd, "tzst": zstd}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as out:
            for name, data in files.items():
                out.writestr(name, data)
    else:
        data, codec = tar_bytes(files), compress.get(path.suffix[1:])
        path.write_bytes(codec.compress(data) if codec else data)
    return str(path)


def packed(out: Path | str) -> list[Sample]:
    """What webdataset reads from the shards."""
    urls = sorted(str(path) for path in Path(out).glob("*.tar"))
    samples = []
    for sample in wds.WebDataset(urls, shardshuffle=False, empty_check=False):
        parts = {name: data for name, data in sample.items() if not name.startswith("__")}
        label = int(parts.pop("cls", b"-1"))
        (data,) = parts.values()
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        samples.append((int(numbers_of(pixels[None])[0]), label))
    return samples
