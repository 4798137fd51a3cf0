"""Config -> objects: the data set, its stream, the networks, the optimizers."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from distgan.condition_spec import VectorInput
from distgan.config.batch_plan import BatchPlan
from distgan.config.decode_options import decode_options
from distgan.config.schema import Config, image_spec, network_options, restores
from distgan.data import dataset_card, pixels
from distgan.data.dataset import ALONE, Dataset, DatasetOptions, RankInfo
from distgan.data.loader import Stream, StreamOptions, decoding_threads
from distgan.data.shard_urls import find_shards
from distgan.data.shuffle import BalancedOrder, ShuffleLayout, ShuffleOrder
from distgan.distributed import preemption
from distgan.distributed.launch_env import run_on_all
from distgan.distributed.process_group import World
from distgan.errors import DataError
from distgan.image_spec import LEVELS
from distgan.models import networks
from distgan.models.networks import checkpoint_bytes, num_weights
from distgan.storage.byte_ranges import ByteRangeReader
from distgan.storage.disk_cache import DiskCache
from distgan.storage.formatting import interval, whole_number
from distgan.storage.home import user_path
from distgan.training import parameter_groups
from distgan.training.step_inputs import ImageToImageOptions, StepOptions
from distgan.transforms import degrade_spec


def open_dataset(config: Config, ranks: RankInfo = ALONE) -> Dataset:
    """Open the data set of a run. Raises DataError where it is not what the config asks for."""
    data = config.data
    disk = DiskCache(user_path(data.cache_dir), int(data.cache_dir_gb * 10**9)) if data.cache_dir else None
    source = ByteRangeReader(timeout_sec=data.timeout_sec, cache_bytes=data.cache_mb * 2**20, disk=disk)
    urls = run_on_all(lambda: find_shards(data.shards, allow_pipe=data.allow_pipe), ranks.gather)
    options = DatasetOptions(
        labels=config.model.conditional and not data.condition,
        classes=data.classes,
        image=data.image_key,
        pairs=restores(config) and not config.restore.degrade,
        num_held_out=data.holdout,
        allow_corrupt=data.allow_corrupt,
        conditions=tuple(data.condition),
        dropout=config.model.condition_dropout,
    )
    dataset = Dataset(urls, source, options, ranks, should_stop=preemption.stop_requested)
    if dataset.num_samples < config.train.batch:
        raise DataError(
            f"the data set has {dataset.num_samples} samples, fewer than train.batch={config.train.batch}: "
            "lower train.batch, or add data"
        )
    return dataset


def range_of_data(config: Config, dataset: Dataset) -> list[float]:
    """Return the range of values that a data set's cards give a run without one; empty: all levels of the dtype."""
    return packed_range(dataset) if config.data.dtype in LEVELS else range_of_cards(dataset)


def range_of_cards(dataset: Dataset) -> list[float]:
    """Return the range that a data set was packed with, or its least and largest value, as its cards say.

    Raises:
        DataError: The cards say neither, or few values are so far from all others that these would be nearly one.
    """
    cards = list(dataset_card.by_folder(dataset.urls).values())
    found = [dataset_card.value_range(card) or card.get("values") for card in cards]
    if not found or not all(found):
        raise DataError(
            "data.dtype=float32 needs the values that are -1 and 1 for the networks, and the shards have no card that "
            "says which there are: set data.range=[LOW,HIGH]; shards that `distgan pack` makes have such a card"
        )
    low, high = min(values[0] for values in found if values), max(values[1] for values in found if values)
    if not low < high:
        raise DataError(
            f"all values of the data set are {whole_number(low)}, as its card says: there is nothing to learn"
        )
    most = [
        card.get("quantiles") or values
        for card, values in zip(cards, found)
        if values and dataset_card.value_range(card) is None
    ]
    if len(most) == len(cards):
        least, largest = min(values[0] for values in most), max(values[1] for values in most)
        if largest - least < pixels.LITTLE_USED * (high - low):
            narrow = f"data.range=[{interval(least, largest, ',')}] clips the others, " if least < largest else ""
            raise DataError(
                f"the values of the data set are {interval(low, high)}, and 99.8 % of them are between "
                f"{interval(least, largest, ' and ')}, nearly one value of that range: choose. {narrow}"
                f"data.range=[{whole_number(low)},{whole_number(high)}] keeps all"
            )
    return [float(low), float(high)]


def packed_range(dataset: Dataset) -> list[float]:
    """Return the range that a data set of whole numbers was packed with; empty: none, so that all levels count."""
    found = [dataset_card.value_range(card) for card in dataset_card.by_folder(dataset.urls).values()]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return []
    return [min(low for low, _ in known), max(high for _, high in known)]


def with_range(config: Config, ranges: Callable[[], list[float]]) -> Config:
    """Return the config with a range of values, which `ranges` reads where the config has none."""
    if config.data.range or config.data.dtype == "uint8":
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, range=ranges()))


def choose_layout(config: Config, dataset: Dataset) -> ShuffleLayout:
    """Choose the constants of the data order, for a run that starts."""
    data, chosen = config.data, ShuffleLayout.choose(dataset.num_samples, dataset.mean_bytes, config.train.batch)
    return ShuffleLayout(
        data.shuffle_lanes or chosen.lanes, data.shuffle_block or chosen.block, data.shuffle_window or chosen.window
    )


def build_plan(config: Config, dataset: Dataset, layout: ShuffleLayout) -> ShuffleOrder:
    """Return the order of the samples."""
    if config.data.balance == "none":
        return ShuffleOrder(dataset.counts, layout, config.train.seed)
    balanced = BalancedOrder(dataset.read_labels(), config.train.seed)
    return ShuffleOrder(np.array([balanced.num_places]), layout, config.train.seed, balanced.samples)


def open_stream(
    config: Config,
    world: World,
    batch_plan: BatchPlan,
    dataset: Dataset,
    layout: ShuffleLayout,
    start: int,
    draw: Callable[[np.ndarray], tuple[np.ndarray, ...]],
) -> Stream:
    """Open this rank's batches from position `start` on, in memory that copies to its device without waiting."""
    data, pinned = config.data, world.device.type == "cuda"
    options = StreamOptions(
        batch_plan.batch,
        dataclasses.replace(decode_options(data), scaled=data.scaled_decode),
        threads=data.decode_threads or decoding_threads(world.local_size, world.device.type, dataset.mean_bytes),
        prefetch=batches_ahead(config, batch_plan),
        max_corrupt_fraction=data.max_corrupt_fraction,
        allocate=lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy(),
    )
    plan, ranks = build_plan(config, dataset, layout), RankInfo(world.rank, world.size)
    return Stream(dataset, plan, options, start=start, ranks=ranks, draw=draw)


def build_nets(config: Config, label_input: int | VectorInput) -> tuple[nn.Module, nn.Module]:
    """Build the G and D that a config describes, on the CPU, for a number of classes or vectors of conditions."""
    return networks.build_nets(**network_options(config), num_classes=label_input)


def freeze_weights(config: Config, G: nn.Module, D: nn.Module) -> dict[str, list[str]]:
    """Freeze the weights that a config names; returns their names by network. Raises ConfigError."""
    return {
        "G": parameter_groups.freeze(G, config.optim.G.freeze, "optim.G.freeze"),
        "D": parameter_groups.freeze(D, config.optim.D.freeze, "optim.D.freeze"),
    }


def step_options(config: Config, batch_plan: BatchPlan) -> StepOptions:
    """Return what a step needs to know of the config."""
    return StepOptions(
        loss=config.loss.name,
        loss_options=config.loss.options,
        image=image_spec(config.data),
        accumulation_steps=batch_plan.passes,
        bf16=config.train.precision == "bf16",
        penalty_precision=config.train.penalty_precision,
        finite_sigma=config.loss.finite_sigma if config.loss.penalty == "finite" else 0.0,
        weight_clip=config.loss.weight_clip,
        label_smoothing=config.loss.label_smoothing,
        feature_matching=config.loss.feature_matching,
        group=config.model.minibatch_group_size,
        augment=config.augment.pipe,
        color=config.augment.color,
        flip=config.data.flip,
        image_to_image=image_to_image_options(config) if restores(config) else None,
        compile=config.train.compile,
        cuda_graphs=config.train.cuda_graphs,
        restore_buffers=config.train.on_nan == "skip",
    )


def image_to_image_options(config: Config) -> ImageToImageOptions:
    """Return the options of a G that restores images."""
    operations = degrade_spec.parse(config.restore.degrade, image_spec(config.data))
    return ImageToImageOptions(
        operations, config.restore.pixel_loss, config.restore.pixel_weight, config.model.D["paired"]
    )


def batches_ahead(config: Config, batch_plan: BatchPlan) -> int:
    """Return how many batches each rank decodes ahead: more of small ones, to bridge the same gap."""
    batch_bytes = batch_plan.batch // batch_plan.world * image_spec(config.data).num_bytes
    return config.data.prefetch or max(2, min(16, config.data.prefetch_mb * 2**20 // batch_bytes))


def describe(
    config: Config, batch_plan: BatchPlan, dataset: Dataset, layout: ShuffleLayout, G: nn.Module, D: nn.Module
) -> list[str]:
    """Describe what a run will do, in lines for the log."""
    train = config.train
    classes = f" of {dataset.num_classes} classes" if dataset.num_classes else ""
    if dataset.conditions is not None:
        classes = f" with {', '.join(dataset.conditions.names)}"
    held_out = f" ({dataset.num_held_out:,} more are held out)" if dataset.num_held_out else ""
    order = f"lanes {layout.lanes}, block {layout.block}, window {layout.window}"
    limit = f", at most {train.max_minutes:g} min" if train.max_minutes else ""
    iterations = -(-train.images // (train.batch * train.n_critic))
    steps = f"{iterations * train.n_critic:,} D and {iterations:,} G steps"
    weights = f"G {num_weights(G) / 1e6:.2f}M and D {num_weights(D) / 1e6:.2f}M"
    lines = [
        f"data: {dataset.num_samples:,} images{held_out}{classes} in {len(dataset.urls):,} shard(s); order: {order}",
        f"batch: {batch_plan}, {train.n_critic} D step(s) to a G step",
        f"length: {train.images:,} images, {train.images / dataset.num_samples:,.1f} epochs, {steps}{limit}",
        f"networks: {config.model.family}, {weights} weights, {checkpoint_bytes(G, D) / 1e6:.0f} MB to a checkpoint",
    ]
    for name, net in (("G", G), ("D", D)):
        frozen = [weight for weight, value in net.named_parameters() if not value.requires_grad]
        lines += parameter_groups.describe(name, net, frozen)
    if config.data.balance == "classes":
        counts = np.bincount(dataset.read_labels()).tolist() if dataset.num_held_out else dataset.class_counts
        sizes = [size for size in counts if size]
        lines.append(
            f"balance: each of {len(sizes)} classes {max(sizes):,} times in {len(sizes) * max(sizes):,} images"
        )
    if unseen := [str(label) for label, count in enumerate(dataset.class_counts) if not count]:
        more = f" ... {unseen[-1]}" if len(unseen) > 10 else ""
        lines.append(
            f"classes: {len(unseen)} of {dataset.num_classes} have no image and are not trained: "
            f"{', '.join(unseen[:10])}{more}"
        )
    return [*lines, *(f"data problem, skipped: {problem}" for problem in dataset.problems[:10])]
