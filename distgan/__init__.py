"""distgan: distributed GAN training on streamed image shards, with exact resume.

from distgan import load_config, load_generator, open_stream, train
"""

from importlib import import_module
from typing import TYPE_CHECKING

from distgan.version import __version__ as __version__

if TYPE_CHECKING:
    from distgan.api import load_config, open_stream, train
    from distgan.config.schema import Config as Config
    from distgan.data.torch_datasets import SampleDataset as SampleDataset
    from distgan.data.torch_datasets import StreamDataset as StreamDataset
    from distgan.inference.loading import load_generator
    from distgan.training.callbacks import Callback as Callback

__all__ = [
    "Callback",
    "Config",
    "SampleDataset",
    "StreamDataset",
    "load_config",
    "load_generator",
    "open_stream",
    "train",
]

_HOMES = {
    "Callback": "distgan.training.callbacks",
    "Config": "distgan.config.schema",
    "SampleDataset": "distgan.data.torch_datasets",
    "StreamDataset": "distgan.data.torch_datasets",
    "load_config": "distgan.api",
    "load_generator": "distgan.inference.loading",
    "open_stream": "distgan.api",
    "train": "distgan.api",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> object:
    """Look up a public name on first use: `import distgan` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'distgan' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
