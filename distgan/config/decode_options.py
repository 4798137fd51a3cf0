"""Read the options of decoding from a config."""

from distgan.config.schema import Data, image_spec
from distgan.data import host_transforms
from distgan.data.decode import DecodeOptions
from distgan.errors import ConfigError
from distgan.image_spec import ImageSpec


def decode_options(data: Data, image: ImageSpec | None = None) -> DecodeOptions:
    """Return how images become what a run trains on, at full precision: `data.scaled_decode` is for training alone.

    Args:
        image: What they become; None: what the settings say.

    Raises:
        ConfigError: A transform is of a plugin that is not loaded.
    """
    try:
        transforms = host_transforms.parse(data.transforms)
    except ValueError as error:
        raise ConfigError(f"data.transforms{error}") from None
    return DecodeOptions(
        image or image_spec(data),
        data.resize_filter,
        data.crop,
        data.max_pixels,
        data.background,
        transforms=transforms,
    )
