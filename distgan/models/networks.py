"""Build G and D of plain arguments, count their weights, and call G."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from distgan.condition_spec import VectorInput
from distgan.errors import ConfigError, DataError, MachineError
from distgan.image_spec import ImageSpec
from distgan.models import MODELS
from distgan.models.epilogue import Epilogue
from distgan.rng import host_rng


def run_generator(G: Callable[..., Tensor], z: Tensor, condition: Tensor | None, labels: Tensor | None) -> Tensor:
    """Return G's images of latents [B, Z], and of a condition where G starts from one; [B, C, H, W] in -1..1."""
    return G(z, labels) if condition is None else G(condition, z, labels)


def require_family(family: str, where: str | Path, hint: str = "") -> None:
    """Refuse networks of a family that there is not. Raises ConfigError; `hint` says how to have it."""
    if family not in MODELS:
        missing = f"which this version of distgan does not have; it has {', '.join(MODELS)}"
        of = f"of a plugin, {hint}" if hint else missing
        raise ConfigError(f"{where}: its networks are of the family {family!r}{' ' if hint else ', '}{of}")


def require_revision(family: str, revision: int, where: str | Path) -> None:
    """Refuse weights of networks that this version computes differently. Raises DataError."""
    current = MODELS[family]
    if revision != current.revision:
        newer = f"; a newer version of distgan wrote it (revision {revision}, here {current.revision})"
        older = f": since then, {current.revised}. Train from scratch, or use the version of distgan that wrote it"
        raise DataError(
            f"{where}: its weights belong to another revision of the {family} networks"
            f"{newer if revision > current.revision else older}"
        )


def checkpoint_bytes(G: nn.Module, D: nn.Module) -> int:
    """Return the size of a checkpoint: G, its average and D, and two moments of each trained weight."""
    return 4 * (4 * num_weights(G) + 3 * num_weights(D))


def num_weights(net: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in net.parameters())


def build_nets(
    family: str,
    image: ImageSpec,
    z_dim: int,
    num_classes: int | VectorInput,
    G: dict[str, object],
    D: dict[str, object],
    *,
    seed: int,
    minibatch: str = "none",
    group: int = 0,
    dropout: float = 0.0,
) -> tuple[nn.Module, nn.Module]:
    """Build G and D on the CPU, with weights that are a function of the seed.

    Args:
        family: A key of `MODELS`.
        image: Channels and size of the images.
        num_classes: Number of classes, for labels int64 [B], 0 without; or the kind of vectors that labels are, float32
            [B, V].
        G, D: The family's own arguments of each network, `model.G` and `model.D` of a config.
        minibatch, group, dropout: Arguments of D's epilogue.

    Raises:
        ConfigError: The family refuses its arguments.
        MachineError: The networks do not fit into memory.
    """
    classes = MODELS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(host_rng.key(seed, "weights") >> 1))
        try:
            generator = classes.generator(image, z_dim, num_classes, **G)
            epilogue = functools.partial(Epilogue, minibatch=minibatch, group=group, dropout=dropout)
            discriminator = classes.discriminator(image, num_classes, **D, epilogue=epilogue)
        except ValueError as error:
            raise ConfigError(f"model.family={family}: {error}") from None
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error) and not isinstance(error, MemoryError):
                raise
            raise MachineError(
                "the networks do not fit into memory: lower the widths of model.G and model.D, or model.z_dim"
            ) from None
    return generator, discriminator
