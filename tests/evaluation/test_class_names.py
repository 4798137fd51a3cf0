"""Sets that were packed apart have the classes of their names, not of their numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.decode import DecodeOptions
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.shard_urls import find_shards
from distgan.errors import DataError
from distgan.image_spec import square
from distgan.storage.byte_ranges import ByteRangeReader


def packed(tmp_path: Path, name: str, classes: list[str]) -> str:
    """A set whose images of class "c<level>" are of that grey level."""
    for each in classes:
        (tmp_path / "in" / name / each).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), int(each[1:]), np.uint8)).save(tmp_path / "in" / name / each / f"{i}.png")
    pack(str(tmp_path / "in" / name), str(tmp_path / name), PackOptions(), workers=1)
    return str(tmp_path / name)


def opened(*shards: str) -> Dataset:
    return Dataset(find_shards(shards), ByteRangeReader(), DatasetOptions(labels=True))


@pytest.mark.parametrize("second", [["c10", "c30"], ["c20", "c30", "c40"], ["c30", "c20", "c10"]])
def test_classes_are_matched_by_name(tmp_path: Path, second: list[str]) -> None:
    both = packed(tmp_path, "a", ["c10", "c20"]), packed(tmp_path, "b", second)
    data = opened(*both)
    assert sum(data.class_counts) == data.num_samples == 6 + 3 * len(second)
    for i in range(data.num_samples):
        level = data.read(i, DecodeOptions(square(8)))[0, 0, 0]
        assert data.class_names[data.label(i)] == f"c{level}"
    joined = pack("::".join(f"{one}/000000.tar" for one in both), str(tmp_path / "joined"), PackOptions(), workers=1)
    assert joined.classes == data.class_names
    assert joined.class_counts == data.class_counts


def test_without_names_nothing_is_guessed(tmp_path: Path) -> None:
    first, second = packed(tmp_path, "a", ["c10", "c20"]), packed(tmp_path, "b", ["c20", "c30"])
    card = Path(second) / "dataset.json"
    card.write_text(json.dumps({"classes": None}))
    with pytest.raises(DataError, match="which of them are the same"):
        opened(first, second)
    assert not Dataset(
        find_shards([first, second]), ByteRangeReader()
    ).class_names  # without labels, nothing is to be matched
    (Path(first) / "dataset.json").unlink()
    card.unlink()
    assert opened(first, second).class_counts == [6, 6]  # other people's shards in two folders: the numbers count
