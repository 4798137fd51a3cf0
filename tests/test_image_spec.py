"""The spec of images: its bounds, and the grid that networks start from."""

import pytest

from distgan.image_spec import ImageSpec, square


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
