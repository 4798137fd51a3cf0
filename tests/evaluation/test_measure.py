"""The way from images to numbers: the same on any number of ranks, every image exactly once, bad input told."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import WORKERS, output, run_ranks
from runs import make_digits
from shards import write_shards

from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.pack_inputs import list_inputs
from distgan.data.shard_urls import find_shards
from distgan.distributed.process_group import World
from distgan.errors import ConfigError, DataError
from distgan.evaluation import image_sets
from distgan.evaluation.image_sets import Images, ListedImages, ShardImages, draw_labels
from distgan.evaluation.measure import StopRequested, check_metrics, extract, measure, measure_reference
from distgan.image_spec import square
from distgan.inference import sampling
from distgan.metrics import frechet, reference_stats
from distgan.metrics.extractors import Extractor, open_extractor
from distgan.metrics.frechet import Moments
from distgan.metrics.reference_stats import Reference, load_statistics
from distgan.metrics.registry import value_name
from distgan.storage.byte_ranges import ByteRangeReader


class Arrays:
    """Images in memory."""

    reads_files = False

    def __init__(self, pixels: torch.Tensor, labels: np.ndarray | None = None) -> None:
        self.num, self.image = len(pixels), square(pixels.shape[-1])
        self._pixels, self._labels = pixels, labels

    def read(self, numbers: np.ndarray) -> Images:
        pixels = self._pixels[torch.from_numpy(numbers)]
        return Images(numbers, pixels, None if self._labels is None else self._labels[numbers])


READ = Arrays.read


def noise(num: int, seed: int = 0, low: int = 0, high: int = 256) -> Arrays:
    pixels = np.random.default_rng(seed).integers(low, high, (num, 16, 16, 3), np.uint8)
    return Arrays(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def shard_images(folder: Path, resolution: int = 16) -> ShardImages:
    dataset = Dataset(find_shards(str(folder)), ByteRangeReader())
    return ShardImages(dataset, DecodeOptions(square(resolution), max_pixels=10**6), threads=2)


def no_poll() -> None:
    pass


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def toy() -> Extractor:
    return open_extractor("toy")


def known(world: World, extractor: Extractor, images: Arrays) -> Reference:
    found = extract(world, extractor, images, images.num, no_poll)
    found.features.root = frechet.root(found.features.gaussian.cov)
    return Reference(found.features, {"resolution": 16, "extractor": extractor.identity}, found.numbers)


@pytest.mark.multi
def test_values_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    """1797 real and 333 generated images, which no number of ranks here divides."""
    shards, told = make_digits(tmp_path / "digits"), []
    for world in (1, 3):
        command = [
            WORKERS / "ranks_evaluate.py",
            shards,
            tmp_path / f"cache-{world}",
            tmp_path / f"{world}.json",
        ]
        codes = run_ranks(world, [*map(str, command), "333"], tmp_path / f"log-{world}")
        assert codes == [0] * world, output(tmp_path / f"log-{world}", world)
        told.append(json.loads((tmp_path / f"{world}.json").read_text()))
    for found in told:
        assert found["reads"] == list(range(1797))
        assert (found["num"], found["num_real"], found["num_kept"]) == (333, 1797, 300)
        assert found["values"] == pytest.approx(told[0]["values"], rel=1e-6)
        assert found["mean"] == pytest.approx(told[0]["mean"], rel=1e-9)
        assert found["labels"] == told[0]["labels"]
    assert told[0]["polls"] == -(-1797 // 64) + -(-333 // 64)
    assert told[1]["polls"] == -(-29 // 3) + 2


def test_features_are_those_of_a_single_pass(world: World, toy: Extractor) -> None:
    images = noise(150)
    found = extract(world, toy, images, 40, no_poll)
    points = toy(images.read(np.arange(150)).pixels)[0]
    expected = Moments.of(points).gaussian()
    assert torch.allclose(found.features.gaussian.cov, expected.cov, rtol=1e-6)
    torch.testing.assert_close(found.features.points, points[torch.from_numpy(found.numbers)], rtol=0, atol=1e-5)
    assert len(found.numbers) == 40
    assert found.features.gaussian.num == 150


def test_a_chunk_has_fewer_large_images(world: World, toy: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cpu", "cuda"):
        for resolution in (8, 32, 200, 256, 300, 384, 512, 1000, 1024, 4096):
            image = square(resolution)
            num, forward = image_sets.chunk_size(torch.device(kind), image), sampling.chunk_size(image)
            assert 1 <= num <= image_sets.CHUNKS[kind]
            assert num % forward == 0
            assert (num == image_sets.CHUNKS[kind]) or resolution > 256
            assert num * resolution**2 <= 256 * 256**2
    assert image_sets.chunk_size(torch.device("cuda"), square(1024)) == 16
    images, read = noise(40), []
    images.image = square(1024)
    monkeypatch.setattr(Arrays, "read", lambda self, numbers: (read.append(len(numbers)), READ(self, numbers))[1])
    extract(world, toy, images, 0)
    assert read == [16, 16, 8]


def test_real_statistics_are_made_once_for_each_of_their_conditions(
    tmp_path: Path, world: World, toy: Extractor
) -> None:
    write_shards(tmp_path / "a", [40, 23])
    write_shards(tmp_path / "b", [40, 24])
    cache, looked = tmp_path / "cache", []
    bicubic = open_extractor("toy", resizer="clean_bicubic")
    cases = [("a", 16, toy), ("a", 16, toy), ("b", 16, toy), ("a", 32, toy), ("a", 16, bicubic), ("a", 16, toy)]
    for folder, resolution, extractor in cases:
        rounds = []
        real = measure_reference(
            world,
            extractor,
            shard_images(tmp_path / folder, resolution),
            keep=50,
            check_stop=lambda rounds=rounds: rounds.append(1),
            cache=cache,
        )
        looked.append(len(rounds))
        assert real.features.gaussian.num == (63 if folder == "a" else 64)
        assert len(real.features.points) == 50
    assert [bool(rounds) for rounds in looked] == [True, False, True, True, True, False]
    for path in cache.iterdir():  # torn by a crash, or by another disk
        path.write_bytes(path.read_bytes()[:-100])
    real = measure_reference(
        world, toy, shard_images(tmp_path / "a"), keep=50, check_stop=lambda: looked.append(1), cache=cache
    )
    assert looked[-1] == 1
    assert real.features.gaussian.num == 63


def test_damaged_real_images_are_left_out_or_too_many(tmp_path: Path, world: World, toy: Extractor) -> None:
    write_shards(tmp_path / "some", [100], damaged=[7])
    real = measure_reference(world, toy, shard_images(tmp_path / "some"), keep=99, check_stop=no_poll, cache=tmp_path)
    assert (real.features.gaussian.num, real.num_corrupt) == (99, 1)
    assert 7 not in real.numbers
    write_shards(tmp_path / "many", [100], damaged=[7, 8])
    with pytest.raises(DataError, match="2 of 100 real images are corrupt"):
        measure_reference(world, toy, shard_images(tmp_path / "many"), keep=99, check_stop=no_poll, cache=tmp_path)


def test_a_stop_leaves_at_once(world: World, toy: Extractor) -> None:
    rounds = []

    def check_stop() -> None:
        rounds.append(1)
        if len(rounds) == 2:
            raise StopRequested

    with pytest.raises(StopRequested):
        extract(world, toy, noise(640), 640, check_stop)
    assert len(rounds) == 2


def test_what_a_number_hides_is_told(world: World, toy: Extractor) -> None:
    real = known(world, toy, noise(100, 1))
    found = measure(world, toy, real, noise(20, 2), ["fd"], check_stop=no_poll)
    assert "20 generated images for 32 features: the Fréchet distance is mostly bias" in found.warnings[0]
    grey = Arrays(noise(100, 3).read(np.arange(100)).pixels[:, :1].repeat(1, 3, 1, 1))
    assert measure(world, toy, real, grey, ["fd"], check_stop=no_poll).warnings == [
        "all images are gray, and the real ones are not"
    ]


def test_features_that_are_not_finite_give_no_value_and_a_word(world: World, toy: Extractor) -> None:
    real, images = known(world, toy, noise(100, 1)), noise(100, 2)

    class Broken:
        name, identity, key_prefix, dim, num_logits = toy.name, toy.identity, toy.key_prefix, 32, 10

        def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features, logits = toy(pixels)
            features[3, 5] = float("nan")
            return features, logits

    found = measure(world, Broken(), real, images, ["fd", "kid", "pr"], check_stop=no_poll)
    assert all(np.isnan(value) for value, _ in found.values.values())
    assert set(found.values) == {"fd", "kid", "kid_subset_std", "precision_k3", "recall_k3"}
    assert "2 of 100 images have features that are not finite" in found.warnings[0]
    with pytest.raises(DataError, match="not finite"):
        measure_reference(world, Broken(), FromArrays(images), keep=10, check_stop=no_poll, cache=Path("/nonexistent"))


class FromArrays(Arrays):
    """As if of shards."""

    def __init__(self, images: Arrays) -> None:
        super().__init__(images.read(np.arange(images.num)).pixels)
        self.origin = {"shards": "x"}


@pytest.mark.parametrize(
    ("names", "num", "has_points", "told"),
    [
        (["fid"], 100, True, "eval.metrics=fid: there are fd, kid"),
        (["pr"], 3, True, "eval.metrics=pr needs 4 images at least, not 3"),
        (["fd"], 1, True, "eval.metrics=fd needs 2 images at least, not 1"),
        (["fd", "kid"], 100, False, "eval.metrics=kid needs the features of real images"),
    ],
)
def test_metrics_that_are_not_defined_are_refused(
    toy: Extractor, names: list[str], num: int, has_points: bool, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_metrics(names, toy, num, has_points=has_points)
    toy.num_logits = 0
    with pytest.raises(ConfigError, match=r"eval.metrics=is needs a classifier, which toy is not"):
        check_metrics(["is"], toy, 100)


def test_a_statistics_file_comes_back_and_must_fit(tmp_path: Path, world: World, toy: Extractor) -> None:
    real, path = known(world, toy, noise(100, 1)), tmp_path / "real.npz"
    reference_stats.save(path, real)
    again = load_statistics(path, toy.identity, 32, 16)
    assert torch.equal(again.features.gaussian.cov, real.features.gaussian.cov)
    assert torch.equal(again.features.points, real.features.points)
    with np.load(path) as file:  # other tools find what they look for
        assert file["mu"].shape == (32,)
        assert file["sigma"].shape == (32, 32)
    other = open_extractor("toy", resizer="clean_bicubic")
    for extractor, resolution, told in (
        (other.identity, 16, "made with extractor toy:none:tanh:16:bilinear:v1, but the other images are of extractor"),
        (toy.identity, 32, "made with resolution 16, but the other images are of resolution 32"),
    ):
        with pytest.raises(DataError, match=told):
            load_statistics(path, extractor, 32, resolution)


def test_statistics_of_other_tools_are_read_and_nothing_else(tmp_path: Path, world: World, toy: Extractor) -> None:
    real = known(world, toy, noise(100, 1))
    mean, cov = real.features.gaussian.mean.numpy(), real.features.gaussian.cov.numpy()
    np.savez(tmp_path / "other.npz", mu=mean, sigma=cov)
    found = load_statistics(tmp_path / "other.npz", toy.identity, 32, 16)
    assert not found.has_points
    images = noise(100, 2)
    values = [measure(world, toy, one, images, ["fd"], check_stop=no_poll).values["fd"][0] for one in (found, real)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    np.savez(tmp_path / "small.npz", mu=mean[:3], sigma=cov[:3, :3])
    np.savez(tmp_path / "images.npz", images=mean)
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], object), sigma=cov)
    np.savez(tmp_path / "flat.npz", mu=mean, sigma=cov.ravel())
    np.savez(tmp_path / "nan.npz", mu=mean * np.nan, sigma=cov)
    (tmp_path / "text.npz").write_text("mu sigma")
    for name, told in (
        ("small", r"statistics of \(3,\) features, but toy\S* gives 32"),
        ("images", "it has images, but not mu and sigma"),
        ("pickle", "allow_pickle=False"),
        ("flat", r"mu of shape \[32\] and sigma of shape \[1024\]"),
        ("nan", "mu holds values that are not finite"),
        ("text", r"text.npz: not a statistics file \(.npz with mu and sigma\)$"),
        ("none", "No such file"),
    ):
        with pytest.raises(DataError, match=told):
            load_statistics(tmp_path / f"{name}.npz", toy.identity, 32, 16)


def test_pictures_of_a_folder_are_taken_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(5):
        Image.fromarray(np.full((16, 16), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    images = ListedImages(list_inputs(str(tmp_path)), threads=2)
    assert (images.num, images.image) == (5, square(16))
    found = images.read(np.array([1, 4]))
    assert found.pixels[:, :, 0, 0].tolist() == [[40] * 3, [160] * 3]
    assert found.labels is None
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(tmp_path / "9.png")
    with pytest.raises(DataError, match=r"9.png has 20x16 pixels, the first image 16x16"):
        ListedImages(list_inputs(str(tmp_path)), threads=2).read(np.arange(6))
    (tmp_path / "9.png").write_bytes((tmp_path / "1.png").read_bytes()[:44])
    with pytest.raises(DataError, match=f"{tmp_path}/9.png: corrupt.*: no image is skipped.*distgan pack"):
        ListedImages(list_inputs(str(tmp_path)), threads=2).read(np.arange(6))
    Image.fromarray(np.zeros((10_000, 10_001), np.uint8)).save(tmp_path / "9.png")
    with pytest.raises(DataError, match=f"{tmp_path}/9.png: too many pixels .more than 100,000,000.: "):
        ListedImages(list_inputs(str(tmp_path)), threads=2).read(np.arange(6))


def test_a_picture_in_an_archive_that_cannot_be_read_is_named_with_its_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/0.png", b"")
    with pytest.raises(DataError, match=f"{tmp_path}/a.zip: in/0.png: empty file: "):
        ListedImages(list_inputs(str(tmp_path / "a.zip")), threads=2)


def test_labels_follow_their_policy() -> None:
    counts = [300, 100, 0, 600]
    empirical = draw_labels("empirical", 1, 20_000, counts)
    assert np.bincount(empirical, minlength=4) / 20_000 == pytest.approx([0.3, 0.1, 0, 0.6], abs=0.02)
    assert np.bincount(draw_labels("uniform", 1, 20_000, counts)) / 20_000 == pytest.approx(
        [1 / 3, 1 / 3, 0, 1 / 3], abs=0.02
    )
    assert draw_labels("0-1,3", 1, 5, counts).tolist() == [0, 1, 3, 0, 1]
    assert np.array_equal(draw_labels("empirical", 1, 10, counts), empirical[:10])
    assert not np.array_equal(draw_labels("empirical", 2, 20_000, counts), empirical)
    assert draw_labels("uniform", 1, 5, []) is None
    for policy, classes, told in (
        ("4", counts, "eval.labels=4: the classes are 0 to 3"),
        ("0,2-3", counts, "class 2 has no image"),
        ("all", counts, "write empirical, uniform, or class numbers"),
        ("0", [], "trained without classes"),
    ):
        with pytest.raises(ConfigError, match=told):
            draw_labels(policy, 0, 10, classes)


def test_only_the_pinned_inception_gives_a_fid(toy: Extractor) -> None:
    assert value_name("fd", toy, 10_000, True) == "fd_toy_10k_full"
    assert value_name("kid", toy, 1500, False) == "kid_toy_1500"
    assert (
        value_name("fd", open_extractor("toy", resizer="clean_bicubic"), 500, True) == "fd_toy_clean_bicubic_500_full"
    )

    class Disguised:
        name, identity, key_prefix = "inception", "inception:0123456789ab:pool3:299:tf1_bilinear:v1", "fid"

    with pytest.raises(ValueError, match="not the Inception network"):
        value_name("fd", Disguised(), 50_000, True)
    Disguised.identity = "inception:6726825d0af5:pool3:299:tf1_bilinear:v1"
    assert value_name("fd", Disguised(), 50_000, True) == "fid50k_full"
    assert value_name("recall_k3", Disguised(), 50_000, True) == "recall_k3_inception_50k_full"
