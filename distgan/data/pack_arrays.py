"""Images to be packed from an .npz array file."""

import math
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from distgan.data.image_format import MAX_BYTES
from distgan.data.labels import as_classes
from distgan.data.pack_entry import InputEntry, InputListing
from distgan.data.shard_index import MAX_CLASSES
from distgan.errors import DataError
from distgan.storage.array_file import ArrayFile

IMAGES = ("images", "image", "x", "x_train", "data", "arr_0")  # usual names of arrays
LABELS = ("labels", "label", "y", "y_train", "targets", "arr_1")


def list_arrays(
    path: Path,
    labels: bool,
    channels: int = 3,
    images: str = "",
    labels_in: str = "",
    conditions: Collection[str] = (),
) -> InputListing:
    """List the images [N, H, W], [N, H, W, C] or [N, C, H, W] of an .npz, perhaps with labels [N].

    Args:
        labels: Whether there shall be labels.
        channels: Channels that the images are to have; gray and colors become each other.
        images, labels_in: Names of their arrays; empty: found by usual names or, of images, as the only such array.
        conditions: Names of arrays that are conditions, and so no labels unless `labels_in` names them.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file")
    with ArrayFile(path) as file:
        name = _named(file, images, "--images") or _first_array(file, IMAGES, (3, 4)) or _only_images(file)
        if not name:
            raise DataError(
                f"{path}: no image array [N, H, W(, C)] in it that is found by its name, only {file.describe()}: "
                "--images NAME says which one it is"
            )
        shape, dtype = file.shape(name), file.dtype(name)
        if len(shape) not in (3, 4) or dtype.kind not in "biuf":
            raise DataError(f"{path}: {name} is {dtype}{list(shape)}, not images [N, H, W(, C)] of numbers")
        counts = {1, 3, channels}
        is_in_front = len(shape) == 4 and shape[3] not in counts and shape[1] in counts
        num, height, width, bands = (shape[i] for i in (0, 2, 3, 1)) if is_in_front else (*shape, 1)[:4]
        if bands not in counts:
            fewest = min(shape[1], shape[3])
            raise DataError(f"{path}: images with {fewest} channels, expected {channels}: --channels {fewest}")
        if not 0 < height * width <= MAX_BYTES // (3 * dtype.itemsize):
            raise DataError(f"{path}: images of {width}x{height} pixels")
        classes, numbers = _array_classes(file, num, labels_in, conditions) if labels else (None, np.empty(0, np.int64))

    def entries() -> Iterator[InputEntry]:
        with ArrayFile(path) as file:
            for i, image in enumerate(file.rows(name)):
                image = image.transpose(1, 2, 0) if is_in_front else image.reshape(height, width, bands)
                label = int(numbers[i]) if classes else -1
                yield InputEntry(f"{path.name}[{i}]", label, content=image)

    listing = InputListing(entries(), num, classes, origin="the array of labels" if classes else "")
    if not images and name not in IMAGES:
        listing.assumed.append(f"{name} are the images: --images NAME takes another array")
    if is_in_front:
        listing.assumed.append(f"{name} has its channels before height and width")
    return listing


def array_columns(path: Path, num: int, names: Sequence[str]) -> list[list[object]]:
    """Return the values of arrays [num] or [num, R], one list for each. Raises DataError."""
    columns: list[list[object]] = []
    with ArrayFile(path) as file:
        for name in names:
            shape = file.shape(_named(file, name, "--condition"))
            if len(shape) not in (1, 2) or shape[0] != num:
                raise DataError(f"{path}: --condition {name}: {list(shape)} is no value for each of {num:,} images")
            columns.append(file.read(name).tolist())
    return columns


def _named(file: ArrayFile, name: str, option: str) -> str:
    """Return the name of an array that was asked for. Raises DataError where there is none."""
    if name and name not in file:
        raise DataError(f"{file.path}: {option} {name}: there is no such array, only {file.describe()}")
    return name


def _only_images(file: ArrayFile) -> str:
    """Return the only array that may be images; empty where none is, or several."""
    found = [name for name in file.names if len(file.shape(name)) in (3, 4) and file.dtype(name).kind in "biuf"]
    return found[0] if len(found) == 1 else ""


def _array_classes(
    file: ArrayFile, num: int, labels_in: str, conditions: Collection[str]
) -> tuple[list[str] | None, np.ndarray]:
    """Return names of the classes in an array file, and the class of each image; no names without labels."""
    usual = tuple(name for name in LABELS if name not in conditions)
    name = _named(file, labels_in, "--labels") or _first_array(file, usual, (0, 1, 2))
    if not name:
        return None, np.empty(0, np.int64)
    if labels_in and (math.prod(file.shape(name)) != num or file.dtype(name).kind not in "iu"):  # rows or names
        if not file.shape(name) or file.shape(name)[0] != num:
            raise DataError(f"{file.path}: {file.dtype(name)}{list(file.shape(name))} are no labels of {num:,} images")
        names, found = as_classes(file.read(name).tolist(), lambda i: f"{file.path}: {name}[{i}]")
        return names, np.array(found, np.int64)
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
