"""The spec of images: its bounds, and the grid that networks start from."""

import json
import re

import pytest

from distgan.image_spec import ImageSpec, size_error, size_setting, square


@pytest.mark.parametrize(
    ("height", "width", "grid", "doublings"),
    [
        (8, 8, (4, 4), 1),
        (64, 64, (4, 4), 4),
        (1024, 1024, (4, 4), 8),
        (640, 384, (5, 3), 7),
        (320, 448, (5, 7), 6),
        (96, 96, (3, 3), 5),
        (48, 64, (3, 4), 4),
        (200, 200, (25, 25), 3),
        (64, 512, (4, 32), 4),
        (50, 64, (25, 32), 1),
        (33, 64, (33, 64), 0),
    ],
)
def test_the_start_grid_has_the_fewest_pixels_from_three_on(
    height: int, width: int, grid: tuple[int, int], doublings: int
) -> None:
    image = ImageSpec(height, width)
    assert (image.start_grid, image.doublings) == (grid, doublings)
    assert image.size == f"{width}x{height}" and image.shape == (height, width, 3)


def test_levels_are_the_range_of_whole_numbers() -> None:
    assert [(square(8).low, square(8).high), square(8).half_range] == [(0, 255), 127.5]
    assert ImageSpec(8, 8, 1, "uint16").high == 65535
    assert ImageSpec(8, 8, 5, "float32", -2, 6).half_range == 4
    assert [square(8).num_bytes, ImageSpec(8, 6, 5, "float32", 0, 1).num_bytes] == [192, 960]
    assert ImageSpec(8, 8, 4, alpha=True).num_colors == 3


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"channels": 0}, "0 channels"),
        ({"channels": 33}, "33 channels"),
        ({"channels": 3, "alpha": True}, "one is alpha"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "range from 0 to 0"),
        ({"low": 3.0, "high": 3.0}, "range from 3 to 3"),
        ({"height": 0}, "64x0"),
    ],
)
def test_what_is_no_image_is_refused(wrong: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ImageSpec(**{"height": 64, "width": 64} | wrong)


FITTING = {
    "dcgan": [(8, 8), (6, 12), (64, 96), (40, 96), (200, 200), (640, 384), (64, 512)],
    "restore": [(16, 16), (64, 96), (40, 96)],
    "hourglass": [(32, 32), (64, 96), (224, 320)],
}


@pytest.mark.parametrize(("family", "size"), [(family, size) for family in FITTING for size in FITTING[family]])
def test_sizes_that_a_family_can_make(family: str, size: tuple[int, int]) -> None:
    assert size_error(family, *size) == ""


@pytest.mark.parametrize(
    ("family", "size", "such_as"),
    [
        ("r3gan", (33, 33), "32 or 34"),
        ("r3gan", (33, 64), r"\[32,64\] or \[34,64\]"),
        ("dcgan", (720, 1280), r"\[704,1280\] or \[768,1280\]"),
        ("dcgan", (7, 7), "6 or 8"),
        ("dcgan", (8, 1000), r"\[96,992\] or \[96,1024\]"),
        ("restore", (8, 8), "16 or 18"),
        ("hourglass", (48, 48), "32 or 64"),
        ("hourglass", (40, 96), r"\[32,96\] or \[64,96\]"),
    ],
)
def test_the_nearest_sizes_are_named(family: str, size: tuple[int, int], such_as: str) -> None:
    told = size_error(family, *size)
    assert re.search(rf"{re.escape(size_setting(*size))}: the {family} networks need .*such as {such_as}$", told)


@pytest.mark.parametrize("family", FITTING)
def test_no_size_is_nearer_than_the_named_ones(family: str) -> None:
    """Against a search of all sizes."""
    fits = [(h, w) for h in range(6, 128, 2) for w in range(6, 128, 2) if not size_error(family, h, w)]
    for height, width in ((9, 40), (37, 37), (90, 101), (33, 64), (50, 70), (61, 31)):
        if told := size_error(family, height, width):
            named = [json.loads(one) for one in told.partition("such as ")[2].split(" or ")]
            found = [one if isinstance(one, list) else [one, one] for one in named]
            allowed = [size for size in fits if height != width or size[0] == size[1]]
            distances = sorted(abs(h - height) + abs(w - width) for h, w in allowed)
            assert [abs(h - height) + abs(w - width) for h, w in found] == distances[:2]
