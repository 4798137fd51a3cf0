"""Train and read shards from your own program: `from distgan import train, open_stream`."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.config.batch_plan import make_batch_plan
from distgan.config.load import load, load_mapping
from distgan.data.dataset import Dataset
from distgan.data.decode import DecodeOptions
from distgan.data.loader import Stream, StreamOptions
from distgan.data.open_shards import RankInfo
from distgan.data.resize import CROPS
from distgan.data.sample_parts import DatasetOptions
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import ShuffleLayout, ShuffleOrder
from distgan.distributed.launch_env import init_rank_env
from distgan.distributed.preemption import handle_signals
from distgan.errors import ConfigError
from distgan.image_spec import DType, ImageSpec
from distgan.storage.byte_ranges import ByteRangeReader

if TYPE_CHECKING:
    from distgan.training.callbacks import Callback


def train(config: str | Path | Mapping[str, object], *overrides: str, callbacks: "Sequence[Callback]" = ()) -> int:
    """Train as `distgan train CONFIG key=value ...` does, and resume a run that was stopped.

    To be called in the main thread, since signals ask it to save and stop; by all ranks, where a launcher started many.

    Args:
        config: A YAML file, a run folder, or what such a file holds, with `run.dir`.
        callbacks: What your program does during the run, see `distgan.Callback`.

    Returns:
        0 finished, 75 saved on a signal, 130 saved on Ctrl-C.

    Raises:
        ConfigError, DataError, DivergedError, MachineError: of `distgan.errors`; their messages are human-readable.
    """
    if not isinstance(config, (str, Path, Mapping)) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError('train takes a file and settings as words: train("a.yaml", "train.batch=64", "run.dir=a")')
    with handle_signals():
        world = init_rank_env()
        if isinstance(config, Mapping):
            settings = load_mapping(config, overrides)
        else:
            settings = load(str(config), overrides)
        make_batch_plan(settings, world)

        from distgan.training import run

        return run.train(settings, callbacks)


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

    Raises:
        ConfigError, DataError: of `distgan.errors`.
    """
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank}, world={world}: ranks are 0 to world - 1")
    if batch < 1 or batch % world:
        raise ConfigError(f"batch={batch}: a multiple of world={world}, and at least that")
    if start < 0 or threads < 1:
        raise ConfigError(f"start={start}, threads={threads}: at least 0 and 1")
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    try:
        image = ImageSpec(height, width, channels, dtype, 0, 1 if dtype == "float32" else 0)
    except ValueError as error:
        raise ConfigError(f"resolution={resolution}, channels={channels}, dtype={dtype}: {error}") from None
    if crop not in CROPS:
        raise ConfigError(f"crop={crop!r}: choose one of {', '.join(CROPS)}")
    with contextlib.ExitStack() as opened:
        source = ByteRangeReader()
        opened.callback(source.close)
        dataset = Dataset(find_shards(shards), source, DatasetOptions(labels=labels))
        plan = ShuffleOrder(dataset.counts, ShuffleLayout.choose(dataset.num_samples, dataset.mean_bytes, batch), seed)
        options = StreamOptions(batch, DecodeOptions(image, crop=crop), threads=threads)
        stream = Stream(dataset, plan, options, start=start, ranks=RankInfo(rank, world))
        stream.closing = opened.pop_all()
    return stream
