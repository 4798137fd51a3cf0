"""Open the target of `distgan evaluate`: a run, a checkpoint or an exported generator, or images that exist."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distgan.config.decode_options import decode_options
from distgan.config.load import load_to_evaluate
from distgan.config.schema import Config, image_spec
from distgan.config.validate import bands_errors
from distgan.data import dataset_card
from distgan.data.dataset import Dataset
from distgan.data.pack_inputs import list_inputs
from distgan.errors import ConfigError
from distgan.evaluation.image_sets import GeneratedImages, ImageSet, ListedImages, draw_labels
from distgan.image_spec import LEVELS, ImageSpec
from distgan.inference.condition_examples import ConditionExamples
from distgan.inference.exported_folder import is_exported
from distgan.inference.loading import load_generator, locate
from distgan.storage import checkpoint_folder
from distgan.storage.home import user_path
from distgan.storage.urls import public

NUM_IMAGES = 50_000  # the usual number in papers, used if eval.num_images is not set


@dataclass
class Target:
    """The images to measure.

    Attributes:
        images: Maps a seed and the class counts of the data set to the images; images that exist ignore both.
        image: Channels, size and values of the images.
        origin: Where they come from, for the report.
        num_classes: 0 for images without classes.
        is_generated: Whether a generator makes them, so that other seeds give other images.
        unseen: Classes without images in the generator's training data.
        class_names: Names of the class folders, or of the cards of a run's training data.
        conditions: The conditions that the generator takes, with those of real images; None without any.
    """

    config: Config
    images: Callable[[int, Sequence[int]], ImageSet]
    image: ImageSpec
    origin: dict[str, object]
    num_classes: int
    is_generated: bool
    unseen: Sequence[int] = ()
    class_names: Sequence[str] = ()
    conditions: ConditionExamples | None = None


def open_target(target: str, overrides: Sequence[str], device: torch.device) -> Target:
    """Open the trained generator or the images that `target` names."""
    path = user_path(target)
    class_names: Sequence[str] = ()
    layers: list[tuple[str, dict]] = []
    if is_exported(path):
        generator = load_generator(path, device)
        layers = [("exported generator", {"data": of_images(generator.image)})]
        class_names = generator.spec.class_names
    elif (
        checkpoint_folder.names_best(path)
        or checkpoint_folder.newest_first(path)
        or any((path / name).exists() for name in ("manifest.json", "checkpoints", "config.yaml"))
    ):
        where = locate(path)
        generator = load_generator(where, device)
        state = checkpoint_folder.read_state(where)
        layers, class_names = [("checkpoint", state["config"])], state.get("class_names", [])
        path = where.resolve().parent.parent
    else:
        return _open_images(target, path, overrides)
    config = load_to_evaluate([*layers, ("evaluate", {"eval": {"num_images": NUM_IMAGES}})], overrides)
    asked_images = of_images(image_spec(config.data))
    for name, made in of_images(generator.image).items():
        if (asked := asked_images[name]) != made:
            raise ConfigError(
                f"data.{name}={asked}: the generator makes images of data.{name}={made}, and real ones are compared as "
                "such: leave it out"
            )
    _require_reference(config)
    _require_bands(config)
    num_classes, unseen, policy = generator.num_classes, generator.spec.unseen, config.eval.labels
    if generator.conditions is not None and policy != "empirical":
        raise ConfigError(
            f"eval.labels={policy} names classes, and this generator takes conditions, as real images have them: leave "
            "it out"
        )
    if not num_classes or policy != "empirical":
        counts = [int(label not in unseen) for label in range(num_classes)]
        draw_labels(policy, 0, 1, counts, class_names)  # errors are raised before any work

    def images(seed: int, class_counts: Sequence[int]) -> ImageSet:
        if generator.conditions is not None:
            labels: np.ndarray | None = generator.conditions.encoded(seed, np.arange(config.eval.num_images))
        else:
            counts = class_counts if num_classes else []
            labels = draw_labels(policy, seed, config.eval.num_images, counts, class_names)
        return GeneratedImages(
            generator.net,
            generator.z_dim,
            generator.image,
            seed=seed,
            num=config.eval.num_images,
            labels=labels,
            bands=config.eval.bands,
        )

    origin = {name: value for name, value in generator.origin.items() if name != "config"}
    origin |= {
        "path": str(path.resolve()),
        "family": generator.spec.family,
        "weights": f"average of G, half-life {generator.half_life} images",
        "labels": policy if num_classes else "conditions of real images" if generator.conditions else "none",
        "truncation": 1.0,
        "batch_norm": "running statistics" if _has_batch_norm(generator.net) else "none",
    }
    return Target(config, images, generator.image, origin, num_classes, True, unseen, class_names, generator.conditions)


def of_images(image: ImageSpec) -> dict[str, Any]:
    """Return the settings of `data` that make such images of files."""
    alpha = "channel" if image.alpha else "composite"
    values = [] if (image.low, image.high) == (0, LEVELS.get(image.dtype)) else [image.low, image.high]
    return {
        "resolution": image.resolution,
        "channels": image.channels,
        "dtype": image.dtype,
        "range": values,
        "alpha": alpha,
    }


def _require_reference(config: Config) -> None:
    if not config.eval.reference and not config.data.shards:
        raise ConfigError(
            "name the real images: eval.reference=SHARDS, or eval.reference=FILE.npz with statistics of them"
        )


def _require_bands(config: Config) -> None:
    if mistakes := list(bands_errors(config)):
        raise ConfigError(mistakes[0])


def _open_images(target: str, path: Path, overrides: Sequence[str]) -> Target:
    listing = list_inputs(target)
    card = {} if path.is_file() and path.suffix != ".tar" else dataset_card.read(target)
    kind = _kind_of_card(card, overrides)
    config = load_to_evaluate([("card", {"data": kind})], overrides)
    _require_reference(config)  # errors are raised before images are read
    _require_bands(config)
    if config.data.dtype not in LEVELS and not config.data.range:
        raise ConfigError(
            f"data.dtype={config.data.dtype} needs the values that are black and white, and {public(target)} has no "
            "card that says which there are: set data.range=[LOW,HIGH]"
        )
    try:
        decode = decode_options(config.data, image_spec(replace(config.data, resolution=1)))
    except ValueError as error:
        raise ConfigError(f"{error} (data.channels, data.dtype, data.range and data.alpha)") from None
    images = ListedImages(listing, 4, decode, config.eval.bands)
    if asked := [text for text in overrides if text.startswith("eval.num_images=")]:
        raise ConfigError(
            f"{asked[-1]} counts images to generate; {target} has {images.num:,} images, and all of them are "
            "measured: leave it out, or name a folder with fewer of them"
        )
    kind["resolution"] = images.image.resolution
    config = load_to_evaluate([("images", {"data": kind})], overrides)
    if image_spec(config.data) != images.image:
        raise ConfigError(
            f"data.resolution={config.data.resolution}, but {public(target)} has images of {images.image.size} "
            "pixels: real images are compared at the same size. "
            "`distgan pack --resolution` makes images of another size"
        )
    names = listing.classes or ()
    origin: dict[str, object] = {
        "pictures": str(path.resolve()) if path.exists() else public(target),
        "num": images.num,
    }
    if not images.image.is_rgb8:
        origin |= {key: value for key, value in of_images(images.image).items() if key != "resolution"}
    return Target(config, lambda seed, counts: images, images.image, origin, len(names), False, class_names=names)


def _kind_of_card(card: dataset_card.Card, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a card says of channels, type and range, as settings of `data`, where overrides leave it open."""
    given = {text.partition("=")[0] for text in overrides}
    kind: dict[str, Any] = {}
    if "channels" in card and "data.channels" not in given:
        has_alpha = card.get("alpha", False)
        keeps_alpha = has_alpha and "data.alpha=composite" not in overrides
        kind["channels"] = card["channels"] - (has_alpha and not keeps_alpha)
        kind["alpha"] = "channel" if keeps_alpha else "composite"
    dtype = card.get("dtype", "uint8")
    if dtype != "uint8" and ("data.dtype" not in given or f"data.dtype={dtype}" in overrides):
        kind["dtype"] = dtype
        # Values of `pack` are those found; those of `generate` are the range. Whole numbers need none.
        is_range = dtype not in LEVELS or "generated" in card
        if found := dataset_card.value_range(card) or (card.get("values") if is_range else None):
            kind["range"] = [float(value) for value in found]
    return kind


def name_classes(subject: Target, real: Dataset) -> list[str]:
    """Number the classes of images in class folders as the real images' classes; returns warnings if that fails."""
    if subject.is_generated or not subject.class_names or not real.num_classes:
        return []
    images = subject.images(0, [])
    assert isinstance(images, ListedImages)
    real_names = dataset_card.read(real.urls[0]).get("classes")
    numbers = class_numbers(subject.class_names, real_names if isinstance(real_names, list) else [], real.num_classes)
    images.renumber(numbers)
    subject.num_classes = real.num_classes if numbers else 0
    shown = ", ".join(subject.class_names[:3])
    return (
        [] if numbers else [f"the images' classes ({shown} ...) are not those of the real images: no values by class"]
    )


def class_numbers(names: Sequence[str], real_names: Sequence[str], num_classes: int) -> list[int]:
    """Return the numbers of classes by their names, or the names as numbers if they are; [] if neither is possible.

    Args:
        real_names: Names of classes 0, 1 ...; empty if they are unknown: then `num_classes` names count in their order.
    """
    if set(names) <= set(real_names):
        return [real_names.index(name) for name in names]
    if all(name.isdecimal() and int(name) < num_classes for name in names):
        return [int(name) for name in names]
    return list(range(num_classes)) if not real_names and len(names) == num_classes else []


def _has_batch_norm(net: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
