"""The real images of an evaluation, which a config names: shards, or a file of statistics."""

from collections.abc import Sequence

from distgan.config.decode_options import decode_options
from distgan.config.schema import Config
from distgan.data import loader
from distgan.data.dataset import ALONE, Dataset, DatasetOptions, RankInfo
from distgan.data.shard_urls import find_shards
from distgan.distributed import preemption
from distgan.distributed.launch_env import run_on_all
from distgan.distributed.process_group import World
from distgan.evaluation.image_sets import ShardImages
from distgan.evaluation.measure import CheckStop, measure_reference, never_stop
from distgan.image_spec import ImageSpec
from distgan.metrics.extractors import Extractor
from distgan.metrics.reference_stats import Reference, load_statistics
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.home import user_path


def open_shards(
    config: Config, shards: str | Sequence[str], num_classes: int, world: World | None, *, may_have_more: bool = False
) -> Dataset:
    """Open shards of real images; with labels if they have some and `num_classes` is not 0.

    Args:
        world: None for a process outside of any run.
        may_have_more: Whether they may have more classes than `num_classes`.
    """
    data = config.data
    ranks = RankInfo(world.rank, world.size, world.all_gather_object) if world else ALONE
    urls = run_on_all(lambda: find_shards(shards, allow_pipe=data.allow_pipe), ranks.gather)
    source = ByteRangeReader(timeout_sec=data.timeout_sec, cache_bytes=data.cache_mb * 2**20)

    def opened(labels: bool) -> Dataset:
        options = DatasetOptions(
            labels=labels,
            classes=num_classes if labels and not may_have_more else 0,
            image=data.image_key,
            allow_corrupt=data.allow_corrupt,
        )
        return Dataset(urls, source, options, ranks, should_stop=preemption.stop_requested)

    plain = opened(False)
    return opened(True) if num_classes and plain.has_labels else plain


def shard_images(config: Config, dataset: Dataset, image: ImageSpec, world: World) -> ShardImages:
    """Return the images of shards, decoded and resized as for training."""
    threads = config.data.decode_threads or loader.decoding_threads(world.local_size, world.device.type)
    return ShardImages(dataset, decode_options(config.data, image), threads, config.eval.bands)


def is_statistics(config: Config) -> bool:
    """Return whether eval.reference is a file of statistics, not shards."""
    return config.eval.reference.endswith(".npz")


def read_statistics(config: Config, extractor: Extractor, image: ImageSpec) -> Reference:
    """Read the file that eval.reference names. Raises DataError if it does not fit."""
    return load_statistics(user_path(config.eval.reference), extractor.identity, extractor.dim, image.resolution)


def load_reference(
    config: Config,
    extractor: Extractor,
    images: ShardImages | None,
    image: ImageSpec,
    world: World,
    check_stop: CheckStop = never_stop,
) -> Reference | None:
    """Return the statistics of the real images; None on ranks other than 0, unless they are read from a file.

    Args:
        images: The real images; None if eval.reference is a file of statistics.
        image: Size of the images to be measured.
    """
    if images is None:
        return world.run_on_all(lambda: read_statistics(config, extractor, image))
    share = config.data.max_corrupt_fraction
    return measure_reference(
        world, extractor, images, keep=config.eval.num_real_features, check_stop=check_stop, max_corrupt_fraction=share
    )
