"""Find and load trained networks: of a run, of a checkpoint, or of a folder that `distgan export` wrote."""

import hashlib
import inspect
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distgan.config.load import from_dict
from distgan.config.model_schema import net_settings
from distgan.config.plugins import how_to_load, load_plugins, others
from distgan.config.records import to_dict, without_secrets
from distgan.config.schema import Config, image_spec, network_options
from distgan.distributed.gpus import require_usable_gpus
from distgan.distributed.launch_env import local_rank
from distgan.errors import ConfigError, DataError
from distgan.inference.exported_folder import is_exported, read_exported
from distgan.inference.trained_generator import Spec, TrainedGenerator
from distgan.inference.weight_budget import weight_budget
from distgan.models import MODELS, networks
from distgan.models.epilogue import Epilogue
from distgan.storage import checkpoint, checkpoint_folder
from distgan.storage.checkpoint import CorruptCheckpointError
from distgan.storage.home import user_path
from distgan.storage.saved_state import SavedState
from distgan.storage.untrusted import MAX_JSON_BYTES, read

log = logging.getLogger("distgan")


def locate(path: str | Path) -> Path:
    """Return the checkpoint or exported folder that a path names: itself, or a run's checkpoint, which is logged.

    Raises:
        DataError: There is none.
    """
    folder = user_path(path)
    if is_exported(folder):
        return folder
    where = checkpoint_folder.find(folder)
    log.info(checkpoint_folder.describe(folder, where))
    return where


def load_generator(
    path: str | Path,
    device: str | torch.device | None = None,
    *,
    restores: bool | None = False,
    plugins: Sequence[str] = (),
) -> TrainedGenerator:
    """Load the average generator of a run's newest checkpoint, of a checkpoint, or of an exported folder.

    Args:
        device: Where to put it; None: this process's GPU if there is one, or else the CPU.
        restores: Whether it must be an image-to-image generator; None accepts both kinds.
        plugins: Python files or modules with its family, which run (docs/plugins.md).

    Raises:
        DataError: There is none, it is corrupt, or its weights are of another network.
        ConfigError: This version does not have its family, or its inputs are not latents.
    """
    load_plugins((name, None) for name in plugins)
    folder = user_path(path)
    if is_exported(folder):
        spec, weights, origin = read_exported(folder)
    else:
        where, tensors, config, state = read_checkpoint(folder)
        spec, weights = spec_of(config, state), tensors["G_ema"]
        origin = origin_of(where, state["config"], state["images"]) | {"plugins": state.get("plugins", {})}
    net = _build_generator(spec, weights, folder)
    G = TrainedGenerator(net, spec, origin)
    if restores is not None and restores != G.restores:
        noise = f"makes images of noise (model.family={spec.family}): leave --input out"
        restoring = (
            "restores images: `distgan generate --input FOLDER` names those to restore, "
            "and programs take `load_generator(path, restores=True)`"
        )
        raise ConfigError(f"{folder}: this generator {noise if restores else restoring}")
    _require_arguments(net, ["pictures", "z", "labels"] if G.restores else ["z", "labels"], spec.family)
    _load_weights(net, weights, folder)
    net.to(_device_or_default(device)).eval().requires_grad_(False)
    return G


def load_discriminator(path: str | Path, chunk: int, device: str | torch.device | None = None) -> nn.Module:
    """Load the discriminator of a run's checkpoint: D(images, labels) -> logits [B], in evaluation mode.

    Args:
        chunk: Images of a call. A D that compares images with one another does so within the groups of its training
            (model.minibatch_group_size), or the next smaller ones that divide a chunk.
    """
    folder = user_path(path)
    if is_exported(folder):
        raise ConfigError(f"{path} is an exported generator, which has no discriminator: name its run or checkpoint")
    _, tensors, config, state = read_checkpoint(folder)
    with weight_budget(folder, tensors["G"], tensors["D"]):
        _, D = networks.build_nets(**network_options(config), num_classes=spec_of(config, state).label_input)
    _require_arguments(D, ["images", "labels"], config.model.family)
    _load_weights(D, tensors["D"], folder)
    for tail in (module for module in D.modules() if isinstance(module, Epilogue)):
        tail.group = max(n for n in range(1, (tail.group or chunk) + 1) if chunk % n == 0)
    return D.to(_device_or_default(device)).eval().requires_grad_(False)


def load_config(path: str | Path) -> Config:
    """Return the config that a run or checkpoint was trained with."""
    folder = user_path(path)
    if is_exported(folder):
        raise ConfigError(f"{path} is an exported generator: name its run or checkpoint, which know the real images")
    return read_checkpoint(folder)[2]


def read_checkpoint(folder: Path) -> tuple[Path, checkpoint.Tensors, Config, SavedState]:
    """Return the path, the tensors, the config and the state of the checkpoint that a folder names."""
    where = checkpoint_folder.find(folder)
    try:
        tensors, state = checkpoint.load(where)
    except CorruptCheckpointError as error:
        raise DataError(f"{where}: {error}") from None
    if missing := [name for name in ("G", "D", "G_ema") if name not in tensors]:
        raise DataError(f"{where}: {missing[0]}.safetensors is missing")
    config = from_dict(state["config"], where)
    if state.get("own_networks"):
        raise ConfigError(
            f"{where}: its networks are objects of a program's own (`distgan.train(networks=...)`): load "
            "G_ema.safetensors there, or make them a family of a plugin (docs/plugins.md) and train again"
        )
    trained_with = state.get("plugins", {})
    networks.require_family(config.model.family, folder, how_to_load(trained_with, where.resolve().parent.parent))
    for line in others(trained_with):
        log.warning(f"warning: {where}: {line}")
    networks.require_revision(config.model.family, state.get("revision", 1), where)
    if not config.data.resolution:
        raise DataError(f"{where}: state.json: config.data.resolution: got 0, expected the side of the images")
    try:
        image_spec(config.data)
    except ValueError as error:
        raise DataError(f"{where}: state.json: config.data: {error}") from None
    return where, tensors, config, state


def spec_of(config: Config, state: SavedState) -> Spec:
    """Return the spec of a checkpoint's generator."""
    model = config.model
    return Spec(
        model.family,
        config.data.resolution,
        model.z_dim,
        state["num_classes"],
        dict(model.G),
        MODELS[model.family].revision,
        state.get("unseen", []),  # older checkpoints do not have it
        channels=config.data.channels,
        dtype=config.data.dtype,
        range=list(config.data.range),
        alpha=config.data.alpha == "channel",
        aspect=state.get("aspect", 0.0),
        class_names=state.get("class_names", []) if state["num_classes"] else [],
        conditions=state.get("conditions", []),
        examples=state.get("examples", []),
    )


def origin_of(where: Path, config: dict[str, object], images: int) -> dict[str, object]:
    """Return the origin of a generator for files that are passed on, without paths of this machine."""
    values = to_dict(without_secrets(from_dict(config)))
    init = values["init"] | {"source": os.path.basename(os.path.normpath(values["init"]["source"]))}
    data = values["data"] | {"shards": [os.path.basename(os.path.normpath(url)) for url in values["data"]["shards"]]}
    return {
        "run": where.resolve().parent.parent.name,
        "checkpoint": where.name,
        # Of the manifest, which holds a hash of every file, and so of the checkpoint.
        "sha256": hashlib.sha256(read(where / "manifest.json", MAX_JSON_BYTES, follow_links=False)).hexdigest(),
        "images": images,
        "config": {key: value for key, value in values.items() if key not in ("run", "wandb")}
        | {
            "data": data,
            "init": init if values["init"]["source"] else values["init"],
            "plugins": [os.path.basename(name) for name in values["plugins"]],
        },
    }


def _build_generator(spec: Spec, weights: dict[str, Tensor], folder: Path) -> nn.Module:
    """Build the network that a spec describes, with initial weights; it is no larger than the weights to be loaded."""
    try:
        spec.condition_examples  # noqa: B018 (which it raises for)
    except ValueError as error:
        raise DataError(f"{folder}: {error}") from None
    settings = net_settings(spec.family, "G", spec.settings, f"{folder}: model.G")
    if spec.num_classes and len(set(spec.unseen)) >= spec.num_classes:
        raise DataError(f"{folder}: a generator of {spec.num_classes} classes, none of which was trained")
    # The fork keeps the caller's random state: the initial weights are replaced anyway.
    with torch.random.fork_rng(devices=[]), weight_budget(folder, weights):
        return MODELS[spec.family].generator(spec.image, spec.z_dim, spec.label_input, **settings)


def _require_arguments(net: nn.Module, expected: list[str], family: str) -> None:
    """Refuse a network that takes other arguments than its caller passes."""
    names = [name for name in inspect.signature(net.forward).parameters if name != "features"]
    if names != expected:
        raise ConfigError(
            f"networks of the family {family!r} take {', '.join(names)}; here they would be given {', '.join(expected)}"
        )


def _load_weights(net: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Load weights into a network. Raises DataError if they do not fit or are not finite."""
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: the weights are not of the network that is described there: {first}") from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise DataError(f"{folder}: its weights are not all finite numbers: take an earlier checkpoint")


def _device_or_default(device: str | torch.device | None) -> torch.device:
    """Return a device; None: this process's GPU if there is one, or else the CPU."""
    if device is not None:
        return torch.device(device)
    num = require_usable_gpus()
    return torch.device("cuda", local_rank() % num) if num else torch.device("cpu")
