"""Pairs of a degraded and a clean picture, and samples held out: from files to batches."""

import json
from pathlib import Path

import numpy as np
import pytest
from shards import image_bytes, numbered_pixels, numbers_of, tar_bytes, write_shards
from streams import make_stream

from distgan.data.dataset import Dataset, DatasetOptions
from distgan.data.decode import DecodeOptions
from distgan.data.encode import PackOptions
from distgan.data.pack import pack
from distgan.data.pack_entry import ListingOptions
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder, held_out
from distgan.errors import DataError
from distgan.image_spec import square
from distgan.storage.byte_ranges import ByteRangeReader

LAYOUT = ShuffleLayout(lanes=8, block=3, window=5)
OFFSET = 100_000  # of a degraded picture's number from the clean one's


def pair_shard(numbers: range, *, without: tuple[str, int] = ("", -1), damaged: tuple[str, int] = ("", -1)) -> bytes:
    """Numbered pairs with the label number % 3; one of them may lack a part or have a damaged one."""
    members = []
    for number in numbers:
        for part, shown in (("clean.png", number), ("cls", 0), ("degraded.PNG", number + OFFSET)):
            if (part, number) == without:
                continue
            data = b"%d" % (number % 3) if part == "cls" else image_bytes(numbered_pixels(shown))
            members.append((f"{number:06d}.{part}", data[:60] if (part, number) == damaged else data))
    return tar_bytes(members)


def write_pairs(folder: Path, counts: list[int], **options: tuple[str, int]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for i, count in enumerate(counts):
        (folder / f"{i:03d}.tar").write_bytes(pair_shard(range(first, first + count), **options))
        first += count
    return str(folder)


def open_data(folder: Path | str, **options: object) -> Dataset:
    return Dataset(find_shards(str(folder)), ByteRangeReader(), DatasetOptions(**options))


def batches(data: Dataset, num: int, batch: int = 4, **options: object) -> list[tuple[np.ndarray, ...]]:
    """Numbers of clean and degraded pictures (none without pairs), labels and samples of each batch."""
    stream = make_stream(data, ShuffleOrder(data.counts, LAYOUT, seed=3), batch=batch, resolution=16, **options)
    found = []
    try:
        for _ in range(num):
            one = next(stream)
            degraded = numbers_of(one.degraded) if one.degraded is not None else None
            found.append((numbers_of(one.images), degraded, one.labels.copy(), one.samples.copy()))
    finally:
        stream.close()
        data.source.close()
    return found


# Held out.


@pytest.mark.parametrize(("total", "num"), [(1, 0), (10, 0), (10, 3), (10, 9), (1000, 500), (7, 7)])
def test_one_of_each_stretch_is_held_out(total: int, num: int) -> None:
    held = held_out(total, num)
    assert len(held) == num
    assert (
        (held >= np.arange(num) * total // max(num, 1)) & (held < np.arange(1, num + 1) * total // max(num, 1))
    ).all()
    assert np.array_equal(held, held_out(total, num))
    assert num < 100 or len(set(held % 2)) == 2  # not each stretch's first


def test_training_meets_every_image_but_those_held_out(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [7, 0, 30, 3])
    data = open_data(tmp_path / "s", num_held_out=6)
    held = held_out(40, 6).tolist()
    assert (data.num_samples, data.num_held_out) == (34, 6)
    shown = [numbers_of(data.read(i, DecodeOptions(square(16)))[None])[0] for i in range(40)]
    assert shown[:34] == [i for i in range(40) if i not in held]
    assert shown[34:] == held
    assert [data.key(i)[1] for i in range(34, 40)] == [f"{i:06d}" for i in held]
    epoch = np.concatenate([numbers for numbers, *_ in batches(data, 17, batch=2)])
    assert sorted(epoch.tolist()) == shown[:34]


def test_nothing_held_out_is_the_order_there_always_was(tmp_path: Path) -> None:
    """Counts, and so the plan and the fingerprint, know nothing of what is held out where nothing is."""
    write_shards(tmp_path / "s", [7, 30])
    data, held = open_data(tmp_path / "s"), open_data(tmp_path / "s", num_held_out=5)
    assert data.counts.tolist() == [7, 30]
    assert data.fingerprint == held.fingerprint
    assert held.counts.sum() == 32
    plain = np.concatenate([numbers for numbers, *_ in batches(data, 9)])
    assert np.array_equal(plain, ShuffleOrder(np.array([7, 30]), LAYOUT, seed=3).ids(np.arange(36)))


def test_ranks_hold_out_the_same_images(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [9, 9, 9])
    whole = [numbers for numbers, *_ in batches(open_data(tmp_path / "s", num_held_out=5), 8)]
    ranks = [batches(open_data(tmp_path / "s", num_held_out=5), 8, rank=rank, world=2) for rank in (0, 1)]
    assert np.array_equal(np.stack(whole), np.stack([np.concatenate([a[0], b[0]]) for a, b in zip(*ranks)]))


def test_more_than_there_are_cannot_be_held_out(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [5])
    with pytest.raises(DataError, match=r"data.holdout=5 leaves nothing to train on: the data set has 5 samples"):
        open_data(tmp_path / "s", num_held_out=5)


# Pairs.


def test_both_pictures_of_a_pair_come_together(tmp_path: Path) -> None:
    data = open_data(write_pairs(tmp_path / "s", [13, 20]), pairs=True, labels=True, num_held_out=3)
    assert data.num_classes == 3
    for clean, degraded, labels, samples in batches(data, 20):
        assert np.array_equal(degraded, clean + OFFSET)
        assert np.array_equal(labels, clean % 3)
        for sample, number in zip(samples.tolist(), clean.tolist()):
            for is_degraded in (False, True):
                picture = data.read(sample, DecodeOptions(square(16)), degraded=is_degraded)
                assert numbers_of(picture[None])[0] == number + OFFSET * is_degraded
    held = [numbers_of(data.read(30 + i, DecodeOptions(square(16)), degraded=True)[None])[0] for i in range(3)]
    assert held == (held_out(33, 3) + OFFSET).tolist()
    assert [data.label(30 + i) for i in range(3)] == [n % 3 for n in held_out(33, 3).tolist()]


@pytest.mark.parametrize(("part", "told"), [("clean.png", "no clean part"), ("degraded.PNG", "no degraded part")])
def test_a_pair_that_misses_a_side_is_told_before_training(tmp_path: Path, part: str, told: str) -> None:
    folder = write_pairs(tmp_path / "s", [12], without=(part, 5))
    with pytest.raises(DataError, match=rf"1 sample\(s\) with {told}; parts: .*data.allow_corrupt=true"):
        open_data(folder, pairs=True)
    data = open_data(folder, pairs=True, allow_corrupt=True)
    assert data.num_samples == 11
    assert any(told in line for line in data.problems)
    for clean, degraded, *_ in batches(data, 5):
        assert np.array_equal(degraded, clean + OFFSET)
        assert 5 not in clean


@pytest.mark.parametrize("part", ["clean.png", "degraded.PNG"])
def test_another_pair_takes_the_place_of_one_with_a_damaged_side(tmp_path: Path, part: str) -> None:
    data = open_data(write_pairs(tmp_path / "s", [20], damaged=(part, 5)), pairs=True)
    found = batches(data, 10, max_corrupt_fraction=0.1)
    for clean, degraded, *_ in found:
        assert np.array_equal(degraded, clean + OFFSET)
    assert 5 not in np.concatenate([clean for clean, *_ in found])


def test_shards_without_pairs_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", [4])
    with pytest.raises(
        DataError, match=r"no pairs in the shards, only cls, png: .*KEY.clean.png.* or set restore.degrade"
    ):
        open_data(tmp_path / "s", pairs=True)
    with pytest.raises(
        DataError, match=r"no image part in the shards, only clean.png, cls, degraded.png: set data.image_key"
    ):
        open_data(write_pairs(tmp_path / "p", [4]))
    clean = open_data(tmp_path / "p", image="clean.png")  # pairs are a data set for other networks, too
    assert numbers_of(clean.read(2, DecodeOptions(square(16)))[None])[0] == 2


# From folders.


def picture_folder(path: Path, names: dict[str, int], size: tuple[int, int] = (16, 16)) -> str:
    for name, number in names.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.broadcast_to(numbered_pixels(number)[:1, :1], (*size, 3))
        file.write_bytes(image_bytes(np.ascontiguousarray(pixels), "BMP" if name.endswith("bmp") else "PNG"))
    return str(path)


CLEAN = {f"{kind}/{i}.png": i + 10 * c for c, kind in enumerate(["ant", "bee"]) for i in range(4)}


def test_two_folders_are_packed_as_pairs(tmp_path: Path) -> None:
    clean = picture_folder(tmp_path / "clean", CLEAN)
    names = {name.replace("png", "bmp"): number + OFFSET for name, number in CLEAN.items() if name != "ant/1.png"}
    degraded = picture_folder(tmp_path / "degraded", names | {"bee/odd.bmp": 7})
    summary = pack(
        clean, str(tmp_path / "out"), PackOptions(resolution=16), ListingOptions(degraded=degraded), workers=1
    )
    assert summary.samples == 7
    assert summary.skipped == {"without a degraded image": 1, "without a clean image": 1}
    listed = map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines())
    assert sorted(row["reason"] for row in listed) == sorted(summary.skipped)
    data = open_data(tmp_path / "out", pairs=True, labels=True)
    assert data.class_counts == [3, 4]
    for clean_numbers, degraded_numbers, labels, _ in batches(data, 4):
        assert np.array_equal(degraded_numbers, clean_numbers + OFFSET)
        assert np.array_equal(labels, clean_numbers // 10)
    repacked = pack(str(tmp_path / "out"), str(tmp_path / "again"), PackOptions(resolution=8), workers=1)  # from shards
    assert repacked.samples == 7
    again = open_data(tmp_path / "again", pairs=True, labels=True)
    assert again.num_samples == 7


def test_a_pair_whose_sides_do_not_fit_is_left_out(tmp_path: Path) -> None:
    clean = picture_folder(tmp_path / "clean", {f"{i}.png": i for i in range(4)}, size=(32, 64))
    degraded = picture_folder(tmp_path / "degraded", {"0.png": 0, "1.png": 1}, size=(8, 16))  # smaller is no matter
    picture_folder(tmp_path / "degraded", {"2.png": 2}, size=(64, 32))
    (tmp_path / "degraded" / "3.png").write_bytes(b"no image")
    summary = pack(
        clean, str(tmp_path / "out"), PackOptions(resolution=16), ListingOptions(degraded=degraded), workers=1
    )
    assert summary.samples == 2
    assert summary.skipped == {"the degraded image has other proportions": 1, "degraded image: not an image": 1}


def test_folders_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    clean = picture_folder(tmp_path / "clean", {"a.png": 1, "b.png": 2})
    other = picture_folder(tmp_path / "other", {"x.png": 1})
    with pytest.raises(DataError, match=r"no clean image has a degraded one of the same name: the first are a and x"):
        pack(clean, str(tmp_path / "out"), PackOptions(), ListingOptions(degraded=other), workers=1)
    double = picture_folder(tmp_path / "double", {"a.png": 1, "a.bmp": 2})
    with pytest.raises(DataError, match=r"a.bmp and a.png: which of the two is the degraded one"):
        pack(clean, str(tmp_path / "out"), PackOptions(), ListingOptions(degraded=double), workers=1)
    assert not (tmp_path / "out").exists()


def test_archives_with_a_folder_of_their_own_are_paired(tmp_path: Path) -> None:
    files = {name: image_bytes(numbered_pixels(1)) for name in ("clean/a.png", "clean/b.png")}
    (tmp_path / "clean.tar").write_bytes(tar_bytes(files))
    picture_folder(tmp_path / "degraded", {"a.png": 5, "b.png": 6})
    summary = pack(
        str(tmp_path / "clean.tar"),
        str(tmp_path / "out"),
        PackOptions(),
        ListingOptions(degraded=str(tmp_path / "degraded")),
        workers=1,
    )
    assert summary.samples == 2
    assert open_data(tmp_path / "out", pairs=True).num_samples == 2
