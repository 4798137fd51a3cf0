"""Pictures as functions of (seed, number), and the way from -1..1 to bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distgan.data import image_grid
from distgan.image_spec import square
from distgan.inference import sampling
from distgan.models import MODELS
from distgan.transforms.image_values import to_pixels


def generator(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return MODELS["dcgan"].generator(
        square(16), 8, num_classes, base_channels=4, max_channels=16, norm="none", embed_dim=4
    )


def test_a_picture_does_not_depend_on_which_others_are_asked_for() -> None:
    G = generator()
    labels = [i % 3 for i in range(150)]
    many = list(sampling.Sampler(G, 8, 5, square(16)).pixels(range(150), labels))
    for asked in ([0, 1, 2], [100, 101], [149], [7, 63, 64, 140], [90, 3, 3, 4]):
        some = list(sampling.Sampler(G, 8, 5, square(16)).pixels(asked, [labels[i] for i in asked]))
        assert [np.array_equal(picture, many[i]) for picture, i in zip(some, asked)] == [True] * len(asked), asked
    twice = list(sampling.Sampler(G, 8, 5, square(16)).pixels([4, 4], [0, 1]))  # one latent, two classes
    assert not np.array_equal(*twice)
    assert np.array_equal(twice[1], many[4])
    other = list(sampling.Sampler(G, 8, 6, square(16)).pixels(range(3), labels[:3]))
    assert not np.array_equal(many[0], other[0])
    assert list(sampling.Sampler(G, 8, 5, square(16)).pixels([])) == []


@pytest.mark.parametrize("classes", [0, 3])
def test_a_restored_picture_does_not_depend_on_how_many_are_asked_for(classes: int) -> None:
    """Each is made of the degraded picture of its own number, with or without classes."""
    torch.manual_seed(0)
    how = {"base_channels": 4, "max_channels": 16, "norm": "none", "embed_dim": 4}
    G = MODELS["restore"].generator(square(16), 8, classes, **how, skips=True, residual=True, noise=True)

    def read(numbers: list[int]) -> Tensor:
        drawn = [np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8) for n in numbers]
        return torch.from_numpy(np.stack(drawn))

    labels = [i % 3 for i in range(100)] if classes else None
    many = list(sampling.Sampler(G, 8, 5, square(16)).pixels(range(100), labels, degraded=read))
    some = [3, 40, 70, 99]
    few = list(
        sampling.Sampler(G, 8, 5, square(16)).pixels(
            some, [labels[i] for i in some] if classes else None, degraded=read
        )
    )
    assert all(np.array_equal(few[k], many[i]) for k, i in enumerate(some))
    off = [[np.abs(many[i].astype(int) - read([j])[0].numpy()).mean() for j in (i, 7)] for i in some]
    assert all(own < 0.7 * other for own, other in off)  # by its own picture, not another's


def test_sampling_leaves_the_mode_as_it_was() -> None:
    G = generator().train()
    list(sampling.Sampler(G, 8, 0, square(16)).pixels(range(2), [0, 1]))
    assert G.training


def test_the_ends_and_the_middle_of_the_range() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, -2.0, 3.0, 1 / 255])

    def image(value: Tensor) -> np.ndarray:
        return to_pixels(value.view(1, 1, 1, 1).expand(1, 3, 2, 2), square(2))[0]

    assert [int(image(v)[0, 0, 0]) for v in values] == [0, 128, 255, 0, 255, 128]
    levels = torch.arange(256)
    back = to_pixels((levels.float() / 127.5 - 1).view(256, 1, 1, 1).expand(256, 3, 1, 1), square(1))
    assert np.array_equal(back[:, 0, 0, 0], levels.numpy())  # the way in and out loses nothing


def test_a_grid_is_filled_row_by_row(tmp_path: Path) -> None:
    pictures = [np.full((2, 3, 3), i, np.uint8) for i in range(5)]
    grid = image_grid.grid(pictures, columns=3)
    assert grid.shape == (4, 9, 3)
    assert grid[0, ::3, 0].tolist() == [0, 1, 2]
    assert grid[2, ::3, 0].tolist() == [3, 4, 255]
    image_grid.save_png(tmp_path / "grid.png", grid)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("rows", "classes", "expected"), [(0, 0, (8, 10)), (0, 10, (10, 10)), (0, 99, (16, 10)), (3, 10, (3, 10))]
)
def test_the_shape_of_a_grid(rows: int, classes: int, expected: tuple[int, int]) -> None:
    assert image_grid.grid_shape(rows, 10, classes) == expected


def test_a_grid_has_one_class_to_a_row() -> None:
    assert image_grid.grid_labels(3, 2, [0, 2]) == [0, 0, 2, 2, 0, 0]
    assert image_grid.grid_labels(3, 2, []) is None
