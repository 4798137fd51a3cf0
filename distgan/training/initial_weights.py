"""Start a run from weights that were trained before.

What fits by name and shape is taken. What differs since the images or classes differ is made of it; what else differs
keeps its initial weights. Each of these is told.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from distgan.config.schema import Config, image_spec
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec
from distgan.inference.exported_folder import is_exported, read_exported
from distgan.inference.loading import origin_of, read_checkpoint
from distgan.storage import checkpoint
from distgan.storage.home import user_path
from distgan.storage.untrusted import read

PARTS = ("G", "D", "G_ema")
OTHER = {"G": "G_ema", "G_ema": "G"}  # what is taken where a source lacks a part
NAMES = {
    "G": ("G", "g", "netG"),
    "D": ("D", "d", "netD"),
    "G_ema": ("G_ema", "g_ema", "netG_ema"),
}  # in files of others
EMBED, FILES, TORCH = "embed.", (".safetensors",), (".pt", ".pth", ".bin")
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Weights to start from.

    Attributes:
        where: The source, for messages.
        nets: Weights by name, of each part that there is.
        origin: The file or checkpoint with its sha256, for records.
        family, image, class_names, num_classes: Of its networks and data; "" , None or empty where it does not say.
    """

    where: str
    nets: dict[str, Weights]
    origin: dict[str, object]
    family: str = ""
    image: ImageSpec | None = None
    class_names: Sequence[str] = ()
    num_classes: int = 0


@dataclass
class Fit:
    """What became of a part's weights: tensors taken as they are, made of the source's, new, and left in the source."""

    part: str
    taken: int = 0
    made: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """Return it as a line for the log."""
        parts = [f"{self.taken} tensors taken"]
        for what, names in (("made", self.made), ("new", self.new), ("left", self.left)):
            if names:
                parts.append(f"{len(names)} {what} ({', '.join(names[:3])}{' ...' * (len(names) > 3)})")
        return f"init: {self.part}: {', '.join(parts)}"


def read_source(path: str) -> Source:
    """Read weights from a run, a checkpoint, an exported folder, or a file of tensors.

    Raises:
        ConfigError: It is of no known form.
        DataError: It is corrupt, needs code to be read, or has weights that are not finite.
    """
    found = user_path(path)
    if found.is_dir() and is_exported(found):
        spec, weights, origin = read_exported(found)
        source = Source(path, {"G_ema": weights}, origin, spec.family, spec.image, spec.class_names, spec.num_classes)
    elif found.is_dir():
        where, tensors, config, state = read_checkpoint(found)
        nets, origin = {part: tensors[part] for part in PARTS}, origin_of(where, state["config"], state["images"])
        image, names = image_spec(config.data), state.get("class_names", [])
        source = Source(path, nets, origin, config.model.family, image, names, state["num_classes"])
    else:
        nets, sha256 = _read_file(found)
        source = Source(path, nets, {"file": found.name, "sha256": sha256})
    for part, weights in source.nets.items():
        if bad := next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None):
            raise DataError(f"init.source={path}: {part}: {bad} is not finite: take an earlier checkpoint")
    return source


def _read_file(path: Path) -> tuple[dict[str, Weights], str]:
    """Return the parts in a file of tensors, and its sha256."""
    kind = path.suffix.lower()
    if kind not in (*FILES, *TORCH):
        raise ConfigError(
            f"init.source={path}: name a run, a checkpoint, an exported folder, or a file that ends in "
            f"{', '.join((*FILES, *TORCH))}. A pickle of whole networks (.pkl) runs code when it is read: save their "
            "state_dict() where they come from"
        )
    try:
        data = read(path, checkpoint.machine_memory())
    except FileNotFoundError:
        raise DataError(f"init.source={path}: no such file or folder") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if kind in FILES:
        return _parts(checkpoint.tensors_of(data, path), path), sha256
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no file of its own
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"init.source={path}: not read as plain tensors, since anything else could run code: {reason}; save "
            "net.state_dict() of each network where they come from"
        ) from None
    return _parts(values, path), sha256


def _parts(values: object, path: Path) -> dict[str, Weights]:
    """Return the parts of a file: {"G": {name: tensor}}, names that begin with the part, or one generator."""
    if not isinstance(values, Mapping) or not values:
        raise DataError(f"init.source={path}: it holds a {type(values).__name__}, not tensors by name")
    found: dict[str, Weights] = {}
    for part, names in NAMES.items():
        for name in names:
            inside = values.get(name)
            if isinstance(inside, Mapping):
                found[part] = _tensors(inside, path)
            elif own := {key[len(name) + 1 :]: value for key, value in values.items() if key.startswith(f"{name}.")}:
                found[part] = _tensors(own, path)
    return found or {"G": _tensors(values, path)}


def _tensors(values: Mapping, path: Path) -> Weights:
    if bad := next((key for key, value in values.items() if not isinstance(value, Tensor)), None):
        raise DataError(f"init.source={path}: {bad} is a {type(values[bad]).__name__}, not a tensor: no known form")
    return {str(key).removeprefix("module."): value for key, value in values.items()}


def initialize(
    nets: Mapping[str, nn.Module], config: Config, source: Source, class_names: Sequence[str], num_classes: int
) -> list[Fit]:
    """Give networks the weights of a source; returns what became of each part.

    Args:
        nets: "G", "D" and "G_ema". An average that is not among `init.parts` becomes a copy of G.
        class_names, num_classes: Of the data that will be trained on.

    Raises:
        ConfigError: The source has other networks.
    """
    if source.family and source.family != config.model.family:
        raise ConfigError(
            f"init.source={source.where}: its networks are of model.family={source.family}, not {config.model.family}: "
            "their weights mean something else"
        )
    image = image_spec(config.data)
    if source.image is not None and (source.image.height, source.image.width) != (image.height, image.width):
        raise ConfigError(
            f"init.source={source.where}: it makes images of {source.image.size} pixels, and data.resolution is "
            f"{image.setting}: no family has blocks that double the size and change nothing; set data.resolution="
            f"{source.image.setting}"
        )
    fits = []
    for part in [part for part in PARTS if part in config.init.parts]:
        weights = source.nets.get(part) or source.nets.get(OTHER.get(part, ""))
        if weights is None:
            fits.append(Fit(part, new=["all: the source has none"]))
            continue
        rows = functools.partial(_class_rows, source=source, class_names=class_names, num_classes=num_classes)
        fits.append(_fit(part, nets[part], weights, rows, source.image.channels if source.image else 0, image.channels))
        if not fits[-1].taken:
            raise ConfigError(
                f"init.source={source.where}: no weight of {part} fits by name and shape, as "
                f"{next(iter(weights), 'nothing')}: it is of other networks, or of other widths (model.{part[0]})"
            )
    if "G_ema" not in config.init.parts:
        nets["G_ema"].load_state_dict(nets["G"].state_dict())
    return fits


def _fit(
    part: str, net: nn.Module, weights: Weights, rows: "functools.partial[Tensor | None]", before: int, channels: int
) -> Fit:
    """Copy into a network what fits, and what can be made to fit."""
    fit, own = Fit(part), net.state_dict()
    fit.left = [name for name in weights if name not in own]
    for name, value in own.items():
        theirs = weights.get(name)
        if theirs is None:
            fit.new.append(name)
            continue
        is_table = name.startswith(EMBED) and theirs.ndim == 2
        made = rows(theirs) if is_table else None
        if made is None and theirs.shape != value.shape and before != channels:
            made = _channels(part, theirs, before, channels)
        if made is None and theirs.shape == value.shape:
            value.copy_(theirs)
            fit.taken += 1
        elif made is not None and made.shape == value.shape:
            value.copy_(made)
            fit.made.append(name)
        else:
            fit.new.append(f"{name}: {list(theirs.shape)} there, {list(value.shape)} here")
    return fit


def _class_rows(table: Tensor, source: Source, class_names: Sequence[str], num_classes: int) -> Tensor | None:
    """Return a row for each class: of the class of that name, else the mean of all; None to take the table as it is."""
    known, wanted = list(source.class_names), list(class_names)
    if not num_classes or len(table) != source.num_classes or (known == wanted and len(table) == num_classes):
        return None
    if len(known) < len(table) or len(wanted) < num_classes:  # numbers alone do not say which classes are the same
        return None if len(table) == num_classes else table.mean(0).expand(num_classes, -1)
    mean = table.mean(0)
    return torch.stack([table[known.index(name)] if name in known else mean for name in wanted[:num_classes]])


def _channels(part: str, theirs: Tensor, before: int, now: int) -> Tensor | None:
    """Return a layer next to the images for another number of channels; None where it is not such a layer.

    D's first layer sees a gray image as it saw three equal channels, and three equal ones as the gray one; G's last
    layer makes gray as the mean of its channels, and each channel as the gray one.
    """
    dims = [1] if part == "D" else [0, 1]  # 1 of a transposed convolution
    dim = next((i for i in dims if theirs.shape[i : i + 1] == (before,)), -1)
    if dim < 0 or 1 not in (before, now):
        return None
    total = theirs.sum(dim, keepdim=True)
    if now == 1:
        return total if part == "D" else total / before
    return total.repeat_interleave(now, dim) / (now if part == "D" else 1)
