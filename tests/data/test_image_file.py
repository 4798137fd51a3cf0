"""What is written to a file is what decoding reads."""

import numpy as np
import pytest

from distgan.data import image_file
from distgan.data.decode import DecodeOptions, decode, decode_into
from distgan.image_spec import ImageSpec, square

SPECS = [
    square(8),
    square(8, 1),
    ImageSpec(8, 6, 4, alpha=True),
    ImageSpec(8, 6, 2, alpha=True),
    ImageSpec(8, 6, 4, "uint8", 0, 100, alpha=True),
    ImageSpec(8, 6, 1, "uint16", 0, 4095),
    ImageSpec(8, 6, 3, "uint16"),
    ImageSpec(8, 6, 4, "float32", -3, 5, alpha=True),
    ImageSpec(8, 6, 5, "float32", -3, 5),
]


@pytest.mark.parametrize("image", SPECS, ids=str)
def test_a_file_is_read_as_it_was_written(image: ImageSpec) -> None:
    values = np.random.default_rng(0).uniform(image.low, image.high, image.shape).astype(image.dtype)
    if image.alpha:
        values[0, 0, -1], values[0, 1, -1] = image.low, image.high
        values[values[..., -1] <= image.low] = image.low
    data, back = image_file.to_bytes(values, image), np.empty(image.shape, image.dtype)
    assert data.startswith(b"\x89PNG") == (image_file.suffix(image) == "png")
    assert not decode_into(data, back, DecodeOptions(image))
    np.testing.assert_allclose(back, values, rtol=0, atol=1e-5 if image.dtype == "float32" else 0)


@pytest.mark.parametrize("background", [0, 255])
def test_stacked_files_lie_on_the_same_background_as_one(background: int) -> None:
    hidden = np.zeros((4, 4, 4), np.uint8)
    colors = image_file.to_bytes(hidden, ImageSpec(4, 4, 4, alpha=True))
    infrared = image_file.to_bytes(np.full((4, 4, 1), 7, np.uint8), square(4, 1))
    pixels = decode([colors, infrared], image=square(4, 4), background=background).pixels
    assert pixels[0, 0].tolist() == [*[background] * 3, 7]
