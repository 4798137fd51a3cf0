"""What programs import: `from distgan import ...`."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from processes import output, run_ranks
from runs import make_digits, status, weights, write_config
from torch.utils.data import DataLoader

import distgan
from distgan import open_stream, train
from distgan.data.host_transforms import HostTransform
from distgan.errors import ConfigError
from distgan.training import factory, optimizers


def test_all_that_is_public_can_be_imported() -> None:
    assert all(callable(getattr(distgan, name)) for name in distgan.__all__)
    with pytest.raises(AttributeError, match="no_such"):
        distgan.no_such  # noqa: B018


def test_a_program_trains_and_goes_on(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))
    own = [f"run.dir={tmp_path / 'run'}", "wandb.mode=disabled"]
    assert train(config, *own, "train.images=120") == 0
    assert train(config, *own, "train.images=240") == 0
    assert status(tmp_path / "run")["images"] == 240
    with pytest.raises(ConfigError, match=r"train\.bach"):
        train(config, *own, "train.bach=3")


def test_a_stream_of_one_and_of_two_ranks_is_the_same_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shards = str(make_digits(tmp_path / "digits"))

    def taken(num: int, **settings: int) -> list[np.ndarray]:
        with open_stream(shards, batch=12, resolution=16, labels=True, **settings) as stream:
            return [
                np.concatenate([b.samples, b.labels, b.images.flatten()]) for b in (next(stream) for _ in range(num))
            ]

    whole = taken(4)
    assert all(map(np.array_equal, taken(2, start=24), whole[2:]))
    with open_stream(shards, batch=12, resolution=16, world=2, rank=1, seed=0) as second:
        samples = next(second).samples
    assert np.array_equal(samples, whole[0][6:12])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_of_any_workers_gives_the_batches_of_the_stream(tmp_path: Path, num_workers: int) -> None:
    shards = str(make_digits(tmp_path / "digits"))
    settings = {"labels": True, "seed": 3, "start": 24, "rank": 1, "world": 2, "resolution": 16}
    dataset = distgan.StreamDataset(shards, 12, **settings)
    loader = iter(DataLoader(dataset, batch_size=None, num_workers=num_workers))
    with open_stream(shards, batch=12, **settings) as stream:
        for expected, (images, labels) in zip(itertools.islice(stream, 7), loader):
            assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected.images)
            assert np.array_equal(labels.numpy(), expected.labels)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_webdataset_decodes_samples_in_the_order_of_the_stream(tmp_path: Path, num_workers: int) -> None:
    """Those that it has, and their other parts."""
    rng, sink = np.random.default_rng(0), webdataset.TarWriter(str(tmp_path / "000000.tar"))
    for number in range(40):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "png")
        about = {"json": {"number": number}} if number % 3 else {"txt": f"number {number}"}
        sink.write({"__key__": f"key{number}", "png": buffer.getvalue(), "cls": number % 5, **about})
    sink.close()
    source = distgan.SampleDataset(str(tmp_path), 8, labels=True, start=8)
    pipeline = webdataset.DataPipeline(source, webdataset.decode("rgb8"))
    loader = iter(DataLoader(pipeline, batch_size=None, num_workers=num_workers))
    with open_stream(str(tmp_path), batch=8, resolution=16, labels=True, start=8) as stream:
        for batch in itertools.islice(stream, 6):
            for image, label in zip(batch.images, batch.labels):
                sample = next(loader)
                assert np.array_equal(sample["png"], image)
                assert sample["cls"] == label
                number = int(sample["__key__"].removeprefix("key"))
                assert sample.get("json", {"number": number}) == {"number": number}
                assert sample.get("txt", f"number {number}") == f"number {number}"


def test_a_stream_transforms_images_by_their_positions(tmp_path: Path) -> None:
    shards = str(make_digits(tmp_path / "digits"))

    def taken(transform: object, start: int = 0, num: int = 3) -> np.ndarray:
        with open_stream(shards, batch=12, resolution=16, start=start, transform=transform) as stream:
            return np.concatenate([next(stream).images.copy() for _ in range(num)])

    plain = taken(None)
    assert np.array_equal(taken(lambda pixels: 255 - pixels), 255 - plain)
    half = taken(lambda pixels: pixels[:8])  # which is then brought to its size
    assert half.shape == plain.shape
    assert not np.array_equal(half, plain)
    drawn = HostTransform(lambda pixels, draws, _: np.full_like(pixels, int(256 * draws[1])), num_draws=2)
    levels = taken(drawn)[:, 0, 0, 0]
    assert len(set(levels.tolist())) > 15
    assert np.array_equal(taken(drawn, start=24, num=1)[:, 0, 0, 0], levels[24:])
    with (
        open_stream(shards, batch=12, resolution=16, transform=lambda pixels: pixels / 2) as stream,
        pytest.raises(ConfigError, match="returned float64: an array of uint8 is needed"),
    ):
        next(stream)


def test_objects_of_a_program_train_as_those_that_the_config_describes(tmp_path: Path) -> None:
    """Networks, optimizers and data that the program made itself; saved and resumed, too."""
    path = write_config(tmp_path / "tiny.yaml", make_digits(tmp_path / "digits"))

    def run(name: str, images: int, own: bool) -> dict[str, str]:
        config = distgan.load_config(
            path, f"run.dir={tmp_path / name}", f"train.images={images}", "wandb.mode=disabled"
        )
        objects = {}
        if own:
            dataset = factory.open_dataset(config)
            G, D = factory.build_nets(config, dataset.label_input)
            settings = zip((config.optim.G, config.optim.D), (G, D))
            own_optimizers = tuple(optimizers.build_optimizer(*of) for of in settings)
            objects = {"networks": (G, D), "optimizers": own_optimizers, "dataset": dataset}
        assert train(config, **objects) == 0
        return weights(tmp_path / name)

    expected = run("as configured", 240, own=False)
    assert run("own", 120, own=True) != expected
    assert run("own", 240, own=True) == expected
    with pytest.raises(ConfigError, match="objects of a program's own"):
        distgan.load_generator(tmp_path / "own")
    config = distgan.load_config(path)
    assert isinstance(config, distgan.Config)
    with pytest.raises(ConfigError, match="give overrides to load_config"):
        train(config, "train.batch=3")
    with pytest.raises(ConfigError, match="pass networks too"):
        train(config, optimizers=(torch.optim.SGD([torch.zeros(1)]), torch.optim.SGD([torch.zeros(1)])))


def test_a_program_that_leaves_a_stream_open_ends(tmp_path: Path) -> None:
    shards = str(make_digits(tmp_path / "digits"))
    program = (
        f"from distgan import open_stream\nprint(next(open_stream({shards!r}, batch=4, resolution=16)).samples.size)"
    )
    assert run_ranks(1, ["-c", program], tmp_path / "log") == [0], output(tmp_path / "log")
    assert output(tmp_path / "log").endswith("4\n")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": 7, "world": 2}, "a multiple of world=2"),
        ({"rank": 3, "world": 2}, "rank=3, world=2"),
        ({"resolution": 0}, "resolution=0"),
    ],
)
def test_what_a_stream_cannot_be_is_said(wrong: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told), open_stream("nowhere", **{"batch": 4, "resolution": 16} | wrong):
        pass


def test_settings_that_are_no_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="settings as words"):
        train("a.yaml", ["train.batch=3"])
