"""Choose weights by layer or by name: those that are frozen, and those with a learning rate of their own."""

import fnmatch
from collections.abc import Sequence

from torch import nn

from distgan.config.schema import Optimizer
from distgan.errors import ConfigError
from distgan.models.label_embedding import VectorEmbedding

SHOWN = 8  # names in a message


def layers(net: nn.Module) -> list[str]:
    """Return the names of the layers that hold weights, from the input side; embeddings of labels are no such layer."""
    embeddings = [
        name for name, module in net.named_modules() if isinstance(module, nn.Embedding | VectorEmbedding) and name
    ]
    owners = [_owner(name) for name, _ in net.named_parameters()]
    return list(dict.fromkeys(owner for owner in owners if owner and owner not in embeddings))


def freeze(net: nn.Module, wanted: Sequence[str], key: str) -> list[str]:
    """Freeze the weights that `optim.<net>.freeze` asks for; returns their names.

    Call it before the network is wrapped in DDP, which reduces the gradients of the others alone. Frozen weights get no
    gradient, so that optimizers pass them over: no step, no weight decay.

    Args:
        wanted: A number N, for the first N layers from the input side, or patterns of the names of weights.
        key: The setting, for messages.

    Raises:
        ConfigError: It matches nothing, or everything.
    """
    names = [name for name, _ in net.named_parameters()]
    frozen: set[str] = set()
    for pattern in map(str, wanted):
        if pattern.isdecimal():
            found = _of_first_layers(net, int(pattern), key)
        else:
            found = matching(names, pattern, key)
        frozen.update(found)
    if wanted and len(frozen) == len(names):
        raise ConfigError(
            f"{key}={list(wanted)} freezes all {len(names)} weights, so that nothing would be trained: name fewer. The "
            f"layers from the input side are {_listed(layers(net))}"
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return [name for name in names if name in frozen]


def matching(names: Sequence[str], pattern: str, key: str) -> list[str]:
    """Return the names that a pattern matches, `*` being any characters. Raises ConfigError where it matches none."""
    found = fnmatch.filter(names, pattern) or fnmatch.filter(names, f"{pattern}.*")
    if not found:
        raise ConfigError(
            f"{key}: {pattern!r} matches no weight: name a layer, a weight, or a pattern such as "
            f"'{names[0].partition('.')[0]}*'. The weights are {_listed(names)}"
        )
    return found


def parameter_groups(settings: Optimizer, net: nn.Module, key: str) -> list[dict]:
    """Return the groups of weights of an optimizer: one, or with `lr_factors` one for each factor.

    Raises:
        ConfigError: A factor is none, or a pattern matches nothing.
    """
    if not settings.lr_factors:
        return [{"params": list(net.parameters())}]
    weights = dict(net.named_parameters())
    factor_of: dict[str, float] = {}
    for text in settings.lr_factors:
        pattern, _, number = text.rpartition("=")
        for name in matching(list(weights), pattern, key):
            factor_of.setdefault(name, float(number))  # the first pattern that matches holds
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        groups.setdefault(factor_of.get(name, 1.0), []).append(weight)
    return [{"params": members, "lr_factor": factor} for factor, members in groups.items()]


def describe(net_name: str, net: nn.Module, frozen: Sequence[str]) -> list[str]:
    """Return a line that says what is frozen; none where nothing is."""
    if not frozen:
        return []
    owners = list(dict.fromkeys(_owner(name) or name for name in frozen))
    numbers = sum(weight.numel() for name, weight in net.named_parameters() if name in set(frozen))
    total = sum(weight.numel() for weight in net.parameters())
    return [f"frozen: {numbers:,} of {total:,} weights of {net_name}: {_listed(owners)}"]


def _of_first_layers(net: nn.Module, num: int, key: str) -> list[str]:
    known = layers(net)
    if not 1 <= num <= len(known):
        raise ConfigError(f"{key}={num}: choose from 1 to {len(known) - 1} layers, which are {_listed(known)}")
    first = set(known[:num])
    return [name for name, _ in net.named_parameters() if _owner(name) in first]


def _owner(name: str) -> str:
    """Return the layer that a weight belongs to; under spectral norm too, which keeps it one level further down."""
    layer, parametrized, _ = name.partition(".parametrizations.")
    return layer if parametrized else name.rpartition(".")[0]


def _listed(names: Sequence[str]) -> str:
    more = f" ... {names[-1]} ({len(names)})" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
