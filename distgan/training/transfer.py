"""Fit weights of other networks to those of a run: what is taken, what is made of them, and what starts new."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distgan.condition_spec import Field
from distgan.errors import ConfigError, DataError
from distgan.image_spec import ImageSpec
from distgan.inference.weight_source import WeightSource
from distgan.models.label_embedding import VectorEmbedding
from distgan.models.spectral_norm import power_iteration_step, spectral_norm_layers

EQUALIZED = ("stylegan2",)  # families whose layers divide weights by the root of their inputs
SHOWN = 6  # names in a line of the table
POWER_ITERATIONS = 15  # for weights that were made, as for initial ones


@dataclass(frozen=True)
class Target:
    """What the networks of the new run are for."""

    family: str
    image: ImageSpec
    num_classes: int
    class_names: list[str]
    conditions: list[Field]


@dataclass
class Fitted:
    """A state dict for a network of the run, and what became of each tensor.

    Attributes:
        taken, made, new, left: Names of the tensors that are the source's, that were made of them (with how), that
            start as in a run from nothing, and that the source has in vain.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def lines(self, net: str, of: str) -> list[str]:
        """Return the table of this network, in lines for the log."""
        made = [f"{name} ({how})" for name, how in self.made.items()]
        parts = ((self.taken, "taken"), (made, "made"), (self.new, "new"), (self.left, "left in the source"))
        return [f"init: {net} from {of}: {_listed(names)} {word}" for names, word in parts if names]


def require_fitting(source: WeightSource, target: Target) -> None:
    """Refuse networks that nothing can be taken from, with the reason. Raises ConfigError."""
    spec, where = source.spec, f"init.from={source.path}"
    if spec is None:
        return
    if spec.family != target.family:
        raise ConfigError(
            f"{where}: its networks are of the family {spec.family}, and model.family={target.family}: set "
            f"model.family={spec.family}, or name another source"
        )
    old, new = spec.image, target.image
    if (old.height, old.width) == (new.height, new.width):
        return
    if target.family != "r3gan":
        raise ConfigError(
            f"{where}: its images are {old.size}, and data.resolution={new.setting}: a new block of the family "
            f"{target.family} would change all that the others do. Only r3gan grows; set data.resolution={old.setting}"
        )
    if old.start_grid != new.start_grid or new.doublings < old.doublings:
        raise ConfigError(
            f"{where}: its images are {old.size}, and data.resolution={new.setting}: networks grow to 2, 4, 8 ... "
            f"times both sides. Set data.resolution={old.setting}, or one of those"
        )


def fit(
    net: nn.Module,
    weights: Mapping[str, Tensor],
    source: WeightSource,
    target: Target,
    *,
    is_D: bool,
    classes: list[int],
) -> Fitted:
    """Fit weights to a network, which stays as it is.

    Args:
        classes: For each class of the run the class of the source, or -1 for one that the source does not have.

    Raises:
        DataError: No tensor is of such a network.
    """
    fitted, own = Fitted(), net.state_dict()
    embeddings = {
        name for name, module in net.named_modules() if name and isinstance(module, nn.Embedding | VectorEmbedding)
    }
    grown = _grown(source, target) if is_D else 0
    given = {_name_in_larger(name, grown): tensor for name, tensor in weights.items()}
    for name, value in own.items():
        if name not in given:
            fitted.tensors[name] = value
            fitted.new.append(name)
            continue
        found = given[name].detach().to(value.device)
        is_embedding = any(name.startswith(f"{one}.") for one in embeddings) and name.endswith(("weight", "original"))
        rate = _rate(found, value, is_embedding) if target.family in EQUALIZED else 1.0
        if is_embedding and (made := _of_classes(found, value, classes, source, target)) is not None:
            if made[1]:
                fitted.made[name] = made[1]
            else:
                fitted.taken.append(name)
            fitted.tensors[name] = (rate * made[0]).to(value.dtype)
        elif found.shape == value.shape and not is_embedding:
            fitted.tensors[name] = found.to(value.dtype)
            fitted.taken.append(name)
        elif (channels := _of_channels(found, value, source, target, is_D)) is not None:
            fitted.tensors[name] = (rate * channels).to(value.dtype)
            fitted.made[name] = f"{source.image.channels if source.image else '?'} to {target.image.channels} channels"
        elif (padded := _of_more_inputs(found, value, source, target, is_D)) is not None:
            fitted.tensors[name] = (rate * padded).to(value.dtype)
            fitted.made[name] = "zeros for the class"
        else:
            fitted.tensors[name] = value
            fitted.new.append(name)
            fitted.left.append(name)
    fitted.left += [name for name in given if name not in own]
    if not any(own[name].is_floating_point() for name in fitted.taken):
        what = "discriminator" if is_D else "generator"
        raise DataError(
            f"init.from={source.path}: none of its {len(weights)} tensors is of the {what} of family {target.family} "
            f"with these settings: it has {_listed(list(weights))}, and the network of the run {_listed(list(own))}. "
            "Set model.* as there"
        )
    return fitted


def load(net: nn.Module, fitted: Fitted) -> None:
    """Load fitted weights, and estimate the singular values of those that were made."""
    net.load_state_dict(fitted.tensors)
    changed = {name.removesuffix(".original") for name in fitted.made if name.endswith(".original")}
    chains = {id(module): name for name, module in net.named_modules()}
    layers = []
    for norm, weight in spectral_norm_layers(net):
        if chains[id(norm)].rpartition(".")[0] in changed:
            layers.append((norm, weight))
    for _ in range(POWER_ITERATIONS if layers else 0):
        power_iteration_step(layers)


def match_classes(named: list[str], source: WeightSource, target: Target) -> list[int]:
    """Return for each class of the run the class of the source that it starts from, or -1 for the mean of all.

    Args:
        named: `init.classes`, as NEW=OLD: names, or numbers where there are none.

    Raises:
        ConfigError: One of them is no class.
    """
    old_names = list(source.spec.class_names) if source.spec is not None else []
    old_num = source.spec.num_classes if source.spec is not None else target.num_classes
    by_name = bool(old_names) and bool(target.class_names)
    if by_name:
        found = [old_names.index(name) if name in old_names else -1 for name in target.class_names]
    else:
        found = [label if label < old_num else -1 for label in range(target.num_classes)]
    for text in named:
        new, _, old = text.rpartition("=")
        number = _class_number(new, target.class_names, target.num_classes, text)
        found[number] = _class_number(old, old_names, old_num, text)
    return found


def _class_number(name: str, names: list[str], num: int, text: str) -> int:
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < num:
        return int(name)
    known = _listed(names) if names else f"0 to {num - 1}"
    raise ConfigError(f"init.classes: {text!r}: there is no class {name!r}: choose from {known}, as NEW=OLD")


def _rate(found: Tensor, own: Tensor, is_embedding: bool) -> float:
    """Return by what weights of other inputs are multiplied where a network divides them by the root of its inputs."""
    sizes = [len(one) if is_embedding else one[0].numel() if one.dim() else 1 for one in (found, own)]
    return math.sqrt(sizes[1] / sizes[0])


def _of_classes(
    found: Tensor, own: Tensor, classes: list[int], source: WeightSource, target: Target
) -> tuple[Tensor, str] | None:
    """Return the embeddings of the run's labels, and how they were made ("": they are the source's); None where they
    cannot be made."""
    if found.shape[1:] != own.shape[1:]:
        return None
    before, now = ([one.described_fully for one in each] for each in (source.conditions, target.conditions))
    if before or now:
        return (found, "") if before == now and found.shape == own.shape else None
    if any(label >= len(found) for label in classes) or len(classes) != len(own):
        return None
    mean = found.mean(0)
    rows = torch.stack([mean if label < 0 else found[label] for label in classes])
    if classes == list(range(len(found))):
        return rows, ""
    num = sum(label < 0 for label in classes)
    return rows, f"{len(classes) - num} classes of the source, {num} from the mean of its {len(found)}"


def _of_channels(found: Tensor, own: Tensor, source: WeightSource, target: Target, is_D: bool) -> Tensor | None:
    """Return weights of the layer that reads or makes images, for other channels; None for any other layer."""
    if source.image is None or source.image.channels == target.image.channels or found.dim() != own.dim():
        return None
    differ = [axis for axis in range(found.dim()) if found.shape[axis] != own.shape[axis]]
    sizes = source.image.channels, target.image.channels
    if len(differ) != 1 or (found.shape[differ[0]], own.shape[differ[0]]) != sizes:
        return None
    matrix = _channel_matrix(source.image, target.image, is_D).to(found)
    return torch.tensordot(found.movedim(differ[0], -1), matrix.T, dims=1).movedim(-1, differ[0]).contiguous()


def _channel_matrix(old: ImageSpec, new: ImageSpec, is_D: bool) -> Tensor:
    """Return how weights of the new channels are made of the old ones, [new, old].

    Gray becomes three equal colors for G, and D sees three equal colors as it saw gray; colors become their mean for
    G, and D sees gray as it saw three equal colors. Other channels are copied as far as they go, and start at zero.
    """
    colors = old.channels - old.alpha, new.channels - new.alpha
    matrix = torch.zeros(new.channels, old.channels)
    if colors[0] == 1:
        matrix[: colors[1], 0] = 1 / colors[1] if is_D else 1
    elif colors[1] == 1:
        matrix[0, : colors[0]] = 1 if is_D else 1 / colors[0]
    else:
        matrix[: min(colors), : min(colors)] = torch.eye(min(colors))
    if old.alpha and new.alpha:
        matrix[-1, -1] = 1
    return matrix


def _of_more_inputs(found: Tensor, own: Tensor, source: WeightSource, target: Target, is_D: bool) -> Tensor | None:
    """Return weights of G's first layer with zeros for a class that the source did not know: its images stay."""
    spec = source.spec
    if is_D or spec is None or spec.num_classes or spec.conditions or not (target.num_classes or target.conditions):
        return None
    differ = [i for i in range(found.dim()) if found.dim() == own.dim() and found.shape[i] != own.shape[i]]
    if len(differ) != 1 or not spec.z_dim == found.shape[differ[0]] < own.shape[differ[0]]:
        return None
    result = torch.zeros_like(own)
    result.narrow(differ[0], 0, spec.z_dim).copy_(found)
    return result


def _grown(source: WeightSource, target: Target) -> int:
    """Return the number of doublings that images of the run have more."""
    return 0 if source.image is None else target.image.doublings - source.image.doublings


def _name_in_larger(name: str, grown: int) -> str:
    """Return the name of a weight of R3GAN's D in one for larger images, whose stages count from these; its layer that
    reads images stays the first."""
    parts = name.split(".")
    if not grown or parts[0] != "stages" or parts[1:3] == ["0", "0"]:
        return name
    return ".".join([parts[0], str(int(parts[1]) + grown), *parts[2:]])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" ... ({len(names)} tensors)" if len(names) > SHOWN else "")
