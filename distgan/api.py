"""Train and read shards from your own program: `from distgan import train, open_stream`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load, load_mapping
from distgan.config.schema import Config
from distgan.data.dataset import Dataset
from distgan.data.loader import Stream
from distgan.data.stream_source import StreamSource, Transform
from distgan.distributed.launch_env import init_rank_env
from distgan.distributed.preemption import handle_signals
from distgan.errors import ConfigError
from distgan.image_spec import DType

if TYPE_CHECKING:
    import torch
    from torch import nn

    from distgan.training.callbacks import Callback


def load_config(config: str | Path | Mapping[str, object], *overrides: str) -> Config:
    """Return all settings of a run, checked, for `train` or for a look.

    Args:
        config: A YAML file, a run folder, or what such a file holds, with `run.dir`.
        overrides: Settings as words, such as "train.batch=64"; for a run folder also its plugins, "plugins=[FILE]".

    Raises:
        ConfigError: with every mistake, one line each.
    """
    if not isinstance(config, (str, Path, Mapping)) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError('a config is a file and settings as words: ("a.yaml", "train.batch=64", "run.dir=a")')
    return load_mapping(config, overrides) if isinstance(config, Mapping) else load(str(config), overrides)


def train(
    config: str | Path | Mapping[str, object] | Config,
    *overrides: str,
    callbacks: "Sequence[Callback]" = (),
    networks: "tuple[nn.Module, nn.Module] | None" = None,
    optimizers: "tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None" = None,
    dataset: Dataset | None = None,
) -> int:
    """Train as `distgan train CONFIG key=value ...` does, and resume a run that was stopped.

    To be called in the main thread, since signals ask it to save and stop; by all ranks, where a launcher started many.

    Args:
        config: What `load_config` takes or returns.
        callbacks: What your program does during the run, see `distgan.Callback`.
        networks: G and D in place of those of `model`, on the CPU: G(z, labels) -> [B, C, H, W], and D(images, labels,
            features=False) -> logits [B] (and features). All ranks need the same weights. Commands cannot load such a
            run: make networks of a plugin for that.
        optimizers: Of the weights of `networks`, in place of those of `optim`, whose learning rates and betas they
            still get before each step. A checkpoint keeps the tensors of their state.
        dataset: The opened data set, in place of `data.shards`, which then only records say.

    Returns:
        0 finished, 75 saved on a signal, 130 saved on Ctrl-C.

    Raises:
        ConfigError, DataError, DivergedError, MachineError: of `distgan.errors`; their messages are human-readable.
    """
    if optimizers is not None and networks is None:
        raise ConfigError("optimizers are of the weights of networks: pass networks too")
    if isinstance(config, Config) and overrides:
        raise ConfigError("a Config has all its settings: give overrides to load_config")
    with handle_signals():
        world = init_rank_env()
        settings = config if isinstance(config, Config) else load_config(config, *overrides)
        make_batch_plan(settings, world)

        from distgan.training import run
        from distgan.training.learner import OwnObjects

        return run.train(settings, callbacks, OwnObjects(networks, optimizers, dataset))


def open_stream(
    shards: str | Sequence[str],
    *,
    batch: int,
    resolution: int | tuple[int, int],
    channels: int = 3,
    dtype: DType = "uint8",
    crop: str = "center",
    labels: bool = False,
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    threads: int = 2,
    transform: Transform | None = None,
) -> Stream:
    """Open endless batches of shards in the order in which a run would see them, for any training loop.

        with open_stream("data/faces", batch=64, resolution=128) as stream:
            for batch in stream:                     # batch.images: uint8 [64, 128, 128, 3]; batch.labels: int64 [64]
                ...

    The stream is closed at the end of the `with`, or by `close()`.

    A batch's arrays are overwritten after the next one was taken. Stopped after n batches, the stream continues exactly
    where it was with `start=n * batch`; on each of several ranks it gives that rank's share of the same global batch.

    Args:
        shards: A folder, a glob, an address, or a list, as `data.shards`.
        batch: Images of a global batch, a multiple of `world`.
        resolution: Side in pixels, or (height, width).
        channels: 1 (gray) to 32; of images with transparency, colors lie on white.
        dtype: "uint8", or "uint16" or "float32", which keep the stored numbers.
        crop: How other proportions are met: "center", "stretch", "random" or "pad", as `data.crop`.
        labels: Whether every sample must have a class.
        transform: A change of each decoded image before its resize: a function of pixels [h, w, C] that draws nothing
            itself, or a `HostTransform`, which is given numbers that are a function of the image's position.

    Raises:
        ConfigError, DataError: of `distgan.errors`.
    """
    source = StreamSource(
        shards,
        batch,
        labels,
        seed,
        start,
        rank,
        world,
        resolution=resolution,
        channels=channels,
        dtype=dtype,
        crop=crop,
        threads=threads,
        transform=transform,
    )
    return source.open()
