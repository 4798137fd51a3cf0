"""Images to be packed from an .npz array file."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distgan.data.image_format import MAX_BYTES
from distgan.data.pack_entry import InputEntry, InputListing
from distgan.data.shard_index import MAX_CLASSES
from distgan.errors import DataError
from distgan.storage.array_file import ArrayFile


def list_arrays(path: Path, labels: bool) -> InputListing:
    """List the images [N, H, W], [N, H, W, C] or [N, C, H, W] of an .npz in uint8, perhaps with labels [N]."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file")
    with ArrayFile(path) as file:
        name = _first_array(file, ("images", "image", "x", "x_train", "data", "arr_0"), (3, 4))
        if not name:
            raise DataError(f"{path}: no image array [N, H, W(, C)] in it, only {file.describe()}")
        shape, dtype = file.shape(name), file.dtype(name)
        if dtype != np.uint8:
            raise DataError(f"{path}: the images are {dtype}, not uint8 0..255: convert them first")
        channels_first = len(shape) == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4)
        num, height, width, channels = (shape[i] for i in (0, 2, 3, 1)) if channels_first else (*shape, 1)[:4]
        if not 0 < height * width <= MAX_BYTES // 3:
            raise DataError(f"{path}: images of {width}x{height} pixels")
        if channels not in (1, 3):
            raise DataError(f"{path}: images with {channels} channels, expected 1 or 3")
        classes, numbers = _array_classes(file, num) if labels else (None, np.empty(0, np.int64))

    def entries() -> Iterator[InputEntry]:
        with ArrayFile(path) as file:
            for i, image in enumerate(file.rows(name)):
                image = image.transpose(1, 2, 0) if channels_first else image.reshape(height, width, channels)
                label = int(numbers[i]) if classes else -1
                yield InputEntry(f"{path.name}[{i}]", label, content=np.repeat(image, 3 // channels, 2))

    return InputListing(entries(), num, classes, origin="the array of labels" if classes else "")


def _array_classes(file: ArrayFile, num: int) -> tuple[list[str] | None, np.ndarray]:
    """Return names of the classes in an array file, and the class of each image; no names without labels."""
    name = _first_array(file, ("labels", "label", "y", "y_train", "targets", "arr_1"), (0, 1, 2))
    if not name:
        return None, np.empty(0, np.int64)
    if math.prod(file.shape(name)) != num or file.dtype(name).kind not in "iu":
        raise DataError(f"{file.path}: labels must be whole numbers from 0 on, one for each image")
    numbers = file.read(name).reshape(-1)
    if (numbers < 0).any():
        raise DataError(f"{file.path}: labels must be whole numbers from 0 on, one for each image")
    num_classes = int(numbers.max()) + 1 if num else 0
    if num_classes > MAX_CLASSES:
        raise DataError(f"{file.path}: label {num_classes - 1}: more than {MAX_CLASSES:,} classes")
    if "classes" not in file:
        return [str(i) for i in range(num_classes)], numbers
    shape = file.shape("classes")
    if len(shape) != 1 or not num_classes <= shape[0] <= MAX_CLASSES:
        problem = f"only {shape[0]:,} class names" if len(shape) == 1 else f"class names of shape {list(shape)}"
        raise DataError(f"{file.path}: label {num_classes - 1}, but {problem}")
    return [str(name) for name in file.read("classes").tolist()], numbers


def _first_array(file: ArrayFile, names: tuple[str, ...], dimensions: tuple[int, ...]) -> str:
    """Return the first of these arrays that the file has and that has so many dimensions."""
    return next((name for name in names if name in file and len(file.shape(name)) in dimensions), "")
