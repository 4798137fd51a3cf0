"""Read the options of decoding from a config."""

from distgan.config.schema import Data, image_spec
from distgan.data.decode import DecodeOptions


def decode_options(data: Data) -> DecodeOptions:
    """Return how images become what a run trains on, at full precision: `data.scaled_decode` is for training alone."""
    return DecodeOptions(image_spec(data), data.resize_filter, data.crop, data.max_pixels)
