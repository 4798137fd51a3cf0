"""A trained generator without the trainer: from a run, a checkpoint, or a folder that `distgan export` wrote."""

import contextlib
import hashlib
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distgan.config.load import from_dict, require_own_names
from distgan.config.model_schema import net_settings
from distgan.config.records import to_dict, without_secrets
from distgan.config.schema import Config, network_options
from distgan.distributed.launch_env import local_rank
from distgan.errors import ConfigError, DataError
from distgan.inference import sampling
from distgan.models import MODELS, networks
from distgan.models.epilogue import Tail
from distgan.storage import checkpoint, checkpoint_folder
from distgan.storage.checkpoint import DamagedError, machine_memory
from distgan.storage.home import user_path
from distgan.storage.saved_state import Classes, SavedState
from distgan.storage.untrusted import MAX_JSON_BYTES, Between, Count, Name, Positive, Sha256, json_of, parse, read
from distgan.version import __version__

log = logging.getLogger("distgan")

FORMAT = "distgan generator 1"  # of the folder that `distgan export` writes
WEIGHTS, DESCRIPTION = checkpoint.EXPORT  # its files


@dataclass(frozen=True)
class Spec:
    """What a generator is, and nothing of how it was trained; the bounds hold for what an exported one says.

    Attributes:
        family: A name of `distgan.models.MODELS`.
        resolution: Side of the images in pixels.
        z_dim: Length of a latent.
        num_classes: 0 for a generator without classes.
        settings: The family's own (`model.G` of a config).
        revision: Of the family's networks, see `distgan.models.Family`.
        unseen: Classes of which no training data had an image.
    """

    family: str
    resolution: Annotated[int, Between(8, 1024)]
    z_dim: Annotated[int, Between(1, 2**20)]
    num_classes: Classes
    settings: dict[str, object] = field(default_factory=dict)
    revision: Positive = 1
    unseen: list[Classes] = field(default_factory=list)


class _Weights(TypedDict):
    sha256: Sha256


class _Loss(TypedDict):
    name: Name


class _Train(TypedDict):
    seed: int


class _Ema(TypedDict):
    half_life: float | list[float]


class _Settings(TypedDict):
    """Of the training: what the card of an export tells."""

    loss: _Loss
    train: _Train
    ema: _Ema


class _Origin(TypedDict):
    run: Name
    checkpoint: Name
    sha256: Name
    images: Count
    config: _Settings


class _OfAnyFormat(TypedDict):
    format: Name


class _Exported(_OfAnyFormat):
    """The file DESCRIPTION of an exported generator."""

    generator: Spec
    weights: _Weights
    origin: _Origin


class Generator:
    """A trained generator, ready to draw from; `distgan.load_generator` returns it.

        G = load_generator("runs/faces")
        images = G(16, seed=1)                    # float32 [16, 3, R, R] in -1..1: images 0..15 of seed 1
        images = G(z, labels)                     # of your own latents: standard normal [B, z_dim]
        images = list(G.pictures(range(16)))    # uint8 [R, R, 3] each, as `distgan generate` writes them

    One that restores images instead, of `load_generator(path, restores=True)`:

        images = G.restore(pictures)              # float32 [B, 3, R, R] in -1..1, as is what comes back

    Attributes:
        net: The average generator in evaluation mode, its weights frozen: net(z, labels) -> [B, 3, R, R], or
            net(pictures, z, labels) where it restores.
        restores: Whether it makes images of degraded ones.
        resolution, z_dim, num_classes: R; the length of a latent; 0 for a generator without classes.
        seen: The classes that the training data had images of; it refuses the others, which it never learned.
        spec: These, the family and its settings.
        origin: Where it comes from: run, checkpoint, its hash, images seen, and the config of the training.
    """

    def __init__(self, net: nn.Module, spec: Spec, origin: dict) -> None:
        self.net, self.spec, self.origin = net, spec, origin
        self.restores = "pictures" in inspect.signature(net.forward).parameters
        self.resolution, self.z_dim, self.num_classes = spec.resolution, spec.z_dim, spec.num_classes
        self.seen = sorted(set(range(spec.num_classes)) - set(spec.unseen))
        self.chunk = sampling.chunk_of(spec.resolution)

    @property
    def device(self) -> torch.device:
        """Where the images are made."""
        return next(self.net.parameters()).device

    @torch.no_grad()
    def __call__(self, z: Tensor | int, labels: Tensor | Sequence[int] | int | None = None, *, seed: int = 0) -> Tensor:
        """Images [B, 3, R, R], float32, on the generator's device; -1 is black and 1 is white.

        Args:
            z: Latents [B, z_dim]; or a number B, which means latents 0 to B - 1 of `seed`.
            labels: A class for each image, or one for all; without any, image i is of class `seen[i % len(seen)]`.
            seed: Of the latents, where z is a number. Image i is a function of (seed, i) and its label: its bits do not
                depend on B.

        Raises:
            ValueError: z or labels do not fit the generator, or it restores images.
        """
        if self.restores:
            raise ValueError("this generator restores images: call restore(pictures)")
        if isinstance(z, int):
            if z < 1:
                raise ValueError(f"{z} images: ask for 1 or more, or pass latents [B, {self.z_dim}]")
            return self.images(range(z), seed, labels)
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"latents of shape {list(z.shape)}: this generator takes [B, {self.z_dim}]")
        classes = self._classes(labels, len(z))
        given = None if classes is None else torch.tensor(classes, device=self.device)
        return self.net(z.to(self.device, torch.float32), given)

    @torch.no_grad()
    def restore(self, pictures: Tensor, labels: Tensor | Sequence[int] | int | None = None, *, seed: int = 0) -> Tensor:
        """Degraded images -> restored ones, both [B, 3, R, R] in -1..1; float32, on the generator's device.

        Args:
            labels: As for a call.
            seed: Of the latents, for a network that looks at them (`model.G.noise`).

        Raises:
            ValueError: They do not fit the generator, or it makes images of noise.
        """
        if not self.restores:
            raise ValueError("this generator makes images of noise: call it with latents or a number")
        side = self.resolution
        if pictures.shape[1:] != (3, side, side):
            raise ValueError(f"images of shape {list(pictures.shape)}: this generator takes [B, 3, {side}, {side}]")
        classes = self._classes(labels, len(pictures))
        given = None if classes is None else torch.tensor(classes, device=self.device)
        z = sampling.latents(seed, range(len(pictures)), self.z_dim).to(self.device)
        return self.net(pictures.to(self.device, torch.float32), z, given)

    def images(
        self, numbers: Sequence[int], seed: int = 0, labels: Tensor | Sequence[int] | int | None = None
    ) -> Tensor:
        """Images of the given numbers; [B, 3, R, R] in -1..1. Labels as for a call, image i being that of number i."""
        return torch.cat(list(sampling.images(*self._asked(numbers, seed, labels))))

    def pictures(
        self, numbers: Sequence[int], seed: int = 0, labels: Tensor | Sequence[int] | int | None = None
    ) -> Iterator[np.ndarray]:
        """The same, one by one, as `distgan generate` writes them; uint8 [R, R, 3]."""
        return sampling.generate(*self._asked(numbers, seed, labels))

    def _asked(
        self, numbers: Sequence[int], seed: int, labels: Tensor | Sequence[int] | int | None
    ) -> tuple[nn.Module, int, int, Sequence[int], list[int] | None, int]:
        """The arguments of `sample.images`."""
        if labels is None and self.num_classes:
            labels = [self.seen[int(i) % len(self.seen)] for i in numbers]
        return self.net, self.z_dim, seed, numbers, self._classes(labels, len(numbers)), self.chunk

    def _classes(self, labels: Tensor | Sequence[int] | int | None, num: int) -> list[int] | None:
        if not self.num_classes:
            if labels is not None:
                raise ValueError("labels: this generator was trained without classes")
            return None
        if labels is None:
            return [self.seen[i % len(self.seen)] for i in range(num)]
        found = [labels] * num if isinstance(labels, int) else [int(label) for label in labels]
        if len(found) != num:
            raise ValueError(f"{len(found)} labels for {num} images")
        if wrong := [label for label in found if not 0 <= label < self.num_classes]:
            raise ValueError(f"label {wrong[0]}: the classes are 0 to {self.num_classes - 1}")
        if wrong := set(found).intersection(self.spec.unseen):
            raise ValueError(
                f"label {min(wrong)}: the training data had no image of this class; `seen` lists the others"
            )
        return found


def locate(path: str | Path) -> Path:
    """The checkpoint or exported folder that a run folder, or either of them, means; a person is told which.

    Raises:
        DataError: There is none.
    """
    folder = user_path(path)
    if (folder / DESCRIPTION).exists():
        return folder
    where = checkpoint_folder.find(folder)
    log.info(checkpoint_folder.told(folder, where))
    return where


def load_generator(
    path: str | Path, device: str | torch.device | None = None, *, restores: bool | None = False
) -> Generator:
    """The average generator of a run's newest checkpoint, of a given checkpoint, or of an exported folder.

    Args:
        device: Where to put it; None: this process's GPU if there is one, or else the CPU.
        restores: Whether it must be one that makes images of degraded ones; None: it may be or not.

    Raises:
        DataError: There is none, it is corrupt, or its weights are of another network.
        ConfigError: Its family is not known here, or makes images of something else than latents.
    """
    folder = user_path(path)
    if (folder / DESCRIPTION).exists():
        spec, weights, origin = _exported(folder)
    else:
        where, tensors, config, state = _checkpoint(folder)
        spec, weights = _spec(config, state), tensors["G_ema"]
        origin = _origin(where, state["config"], state["images"])
    net = _network(spec, weights, folder)
    G = Generator(net, spec, origin)
    if restores is not None and restores != G.restores:
        noise = f"makes images of noise (model.family={spec.family}): leave --input out"
        pictures = (
            "restores images: `distgan generate --input FOLDER` names those to restore, "
            "and programs take `load_generator(path, restores=True)`"
        )
        raise ConfigError(f"{folder}: this generator {noise if restores else pictures}")
    _require_arguments(net, ["pictures", "z", "labels"] if G.restores else ["z", "labels"], spec.family)
    _fill(net, weights, folder)
    net.to(_device(device)).eval().requires_grad_(False)
    return G


def load_discriminator(path: str | Path, chunk: int, device: str | torch.device | None = None) -> nn.Module:
    """The discriminator next to a run's generator: D(images, labels) -> logits [B], in evaluation mode.

    Args:
        chunk: Images that it will be shown at a time. Where it compares images with one another, the groups are those
            of its training (model.minibatch_group_size), or the next smaller ones that divide a chunk.
    """
    folder = user_path(path)
    if (folder / DESCRIPTION).exists():
        raise ConfigError(f"{path} is an exported generator, which has no discriminator: name its run or checkpoint")
    _, tensors, config, state = _checkpoint(folder)
    with _Budget(tensors["G"], tensors["D"]).named(folder):
        _, D = networks.build_nets(**network_options(config), num_classes=state["num_classes"])
    _require_arguments(D, ["images", "labels"], config.model.family)
    _fill(D, tensors["D"], folder)
    for tail in (module for module in D.modules() if isinstance(module, Tail)):
        tail.group = max(n for n in range(1, (tail.group or chunk) + 1) if chunk % n == 0)
    return D.to(_device(device)).eval().requires_grad_(False)


def load_config(path: str | Path) -> Config:
    """The settings that a run or checkpoint was trained with."""
    folder = user_path(path)
    if (folder / DESCRIPTION).exists():
        raise ConfigError(f"{path} is an exported generator: name its run or checkpoint, which know the real images")
    return _checkpoint(folder)[2]


def describe(G: Generator, weights: bytes | None = None) -> dict:
    """What an exported generator says of itself; with the file of its weights, what `load_generator` reads."""
    file = {} if weights is None else {"weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()}}
    return {
        "format": FORMAT,
        "made_by": f"distgan {__version__}",
        "generator": asdict(G.spec),
        **file,
        "origin": G.origin,
    }


def _checkpoint(folder: Path) -> tuple[Path, checkpoint.Tensors, Config, SavedState]:
    where = checkpoint_folder.find(folder)
    try:
        tensors, state = checkpoint.load(where)
    except DamagedError as damage:
        raise DataError(f"{where}: {damage}") from None
    if missing := [name for name in ("G", "D", "G_ema") if name not in tensors]:
        raise DataError(f"{where}: {missing[0]}.safetensors is missing")
    config = from_dict(state["config"], where)
    _require_known(config.model.family, str(folder))
    networks.require_revision(config.model.family, state.get("revision", 1), where)
    if not config.data.resolution:
        raise DataError(f"{where}: state.json: config.data.resolution: got 0, expected the side of the images")
    return where, tensors, config, state


def _spec(config: Config, state: SavedState) -> Spec:
    """What the generator of a checkpoint is."""
    model = config.model
    return Spec(
        model.family,
        config.data.resolution,
        model.z_dim,
        state["num_classes"],
        dict(model.G),
        MODELS[model.family].revision,
        state.get("unseen", []),  # which older checkpoints do not know
    )


def _network(spec: Spec, weights: dict[str, Tensor], folder: Path) -> nn.Module:
    """The network that a spec describes, as it starts; no larger than its weights, whatever the spec says."""
    settings = net_settings(spec.family, "G", spec.settings, f"{folder}: model.G")
    if spec.num_classes and len(set(spec.unseen)) >= spec.num_classes:
        raise DataError(f"{folder}: a generator of {spec.num_classes} classes, none of which was trained")
    with torch.random.fork_rng(devices=[]), _Budget(weights).named(folder):  # these weights are drawn for nothing
        return MODELS[spec.family].generator(spec.resolution, spec.z_dim, spec.num_classes, **settings)


class _Budget(TorchFunctionMode):
    """Refuses to make tensors of more values than there are weights to fill them: a description may say anything."""

    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __init__(self, *weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._left = 10**6 + 2 * sum(tensor.numel() for named in weights for tensor in named.values())

    @contextlib.contextmanager
    def named(self, folder: Path) -> Iterator[None]:
        """Count from here on; a refusal names the folder."""
        try:
            with self:
                yield
        except _TooManyError:
            raise DataError(f"{folder}: it describes a network of more weights than there are in it") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
            raise DataError(f"{folder}: the network cannot be built as it is described there: {error}") from None

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if function in self.FACTORIES:
            size = (kwargs or {}).get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            self._left -= math.prod(size)
            if self._left < 0:
                raise _TooManyError
        return function(*args, **(kwargs or {}))


class _TooManyError(Exception):
    pass


def _origin(where: Path, config: dict, images: int) -> dict:
    """Where a generator comes from, for files that are handed on: without the places of this machine."""
    told = to_dict(without_secrets(from_dict(config)))
    data = told["data"] | {"shards": [os.path.basename(os.path.normpath(url)) for url in told["data"]["shards"]]}
    return {
        "run": where.resolve().parent.parent.name,
        "checkpoint": where.name,
        # Of the manifest, which holds a hash of every file, and so of the checkpoint.
        "sha256": hashlib.sha256(read(where / "manifest.json", MAX_JSON_BYTES, follow_links=False)).hexdigest(),
        "images": images,
        "config": {key: value for key, value in told.items() if key not in ("run", "wandb")} | {"data": data},
    }


def _exported(folder: Path) -> tuple[Spec, dict[str, Tensor], dict]:
    where = f"{folder}: {DESCRIPTION} is not one that `distgan export` wrote"
    try:
        value = json_of(read(folder / DESCRIPTION, MAX_JSON_BYTES, follow_links=False), where)
        data = read(folder / WEIGHTS, machine_memory(), follow_links=False)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {Path(error.filename).name} is missing") from None
    told = parse(_OfAnyFormat, value, where)
    if told["format"] != FORMAT:
        raise DataError(f"{folder}: {DESCRIPTION} is of format {told['format']!r}; this version reads {FORMAT!r}")
    exported = parse(_Exported, value, where)
    spec, expected, origin = exported["generator"], exported["weights"]["sha256"], exported["origin"]
    if hashlib.sha256(data).hexdigest() != expected:
        raise DataError(f"{folder}: {WEIGHTS} is not what was written ({len(data)} bytes): export it again")
    _require_known(spec.family, str(folder))
    networks.require_revision(spec.family, spec.revision, folder)
    require_own_names(dict(origin["config"]), f"{folder}: {DESCRIPTION}")
    return spec, checkpoint.tensors_of(data, folder / WEIGHTS), dict(origin)


def _require_known(family: str, where: str) -> None:
    if family not in MODELS:
        raise ConfigError(
            f"{where}: its networks are of the family {family!r}, which this version of distgan does not have; "
            f"it has {', '.join(MODELS)}"
        )


def _require_arguments(net: nn.Module, known: list[str], family: str) -> None:
    """Refuse a network that is called in another way than it would be here."""
    names = [name for name in inspect.signature(net.forward).parameters if name != "features"]
    if names != known:
        raise ConfigError(
            f"networks of the family {family!r} take {', '.join(names)}; here they would be given {', '.join(known)}"
        )


def _fill(net: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: the weights are not of the network that is described there: {first}") from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise DataError(f"{folder}: its weights are not all finite numbers: take an earlier checkpoint")


def _device(asked: str | torch.device | None) -> torch.device:
    if asked is not None:
        return torch.device(asked)
    return torch.device(f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
